"""Files of which nothing came, as their writes failed, and which the mount that made them takes back."""

from __future__ import annotations

import pytest

from tests.unit.metaserver.harness import Harness
from wire.errors import GracePeriod


def test_a_file_of_which_nothing_came_is_taken_back_and_no_other(meta: Harness) -> None:
    def take_back(name: bytes, ino: int) -> bool:
        meta.service.take_back(meta.ticket(), 1, name, ino)
        return meta.service.resolve(1, [name]) == []

    empty, written, linked, theirs = (
        meta.create(1, name, open_it=True).ino for name in (b"empty", b"written", b"linked", b"theirs")
    )
    meta.write(written, 0, 10)
    meta.service.link(meta.ticket(), linked, 1, b"other name")
    meta.service.open(meta.open_session(), theirs, False)
    assert not take_back(b"empty", written)
    assert not take_back(b"written", written)
    assert not take_back(b"linked", linked)
    assert not take_back(b"theirs", theirs)
    assert take_back(b"empty", empty)
    assert take_back(b"gone", empty)


def test_a_file_is_taken_back_once_all_have_told_what_they_have_open(meta: Harness) -> None:
    """Else a failed `echo > f` would leave an empty file, where the server was restarted meanwhile."""
    ino = meta.create(1, b"empty", open_it=True).ino
    other, ticket = meta.open_session(), meta.ticket()
    meta.restart()
    meta.reclaim(meta.session, [ino])
    for _ in range(2):
        with pytest.raises(GracePeriod):
            meta.service.take_back(ticket, 1, b"empty", ino)
    meta.reclaim(other, [])
    meta.service.take_back(ticket, 1, b"empty", ino)
    assert meta.names(1) == []


def test_a_file_that_is_open_elsewhere_after_a_restart_stays(meta: Harness) -> None:
    ino = meta.create(1, b"empty", open_it=True).ino
    other = meta.open_session()
    meta.restart()
    meta.reclaim(meta.session, [ino])
    meta.reclaim(other, [ino])
    meta.service.take_back(meta.ticket(), 1, b"empty", ino)
    assert meta.names(1) == [b"empty"]


def test_a_session_that_is_asked_what_it_has_open_is_awaited(meta: Harness) -> None:
    """It was alone, and may have opened files without a call."""
    ino = meta.create(1, b"empty", open_it=True).ino
    other = meta.open_session()
    own = meta.create(1, b"own", open_it=True).ino
    meta.sessions.ask_opens(meta.session)
    meta.service.take_back(meta.ticket(), 1, b"own", own)
    meta.sessions.ask_opens(other)
    with pytest.raises(GracePeriod):
        meta.service.take_back(meta.ticket(), 1, b"empty", ino)
    meta.service.tell_open(other, [], meta.sessions.asks_opens(other))
    meta.service.take_back(meta.ticket(), 1, b"empty", ino)
    assert meta.names(1) == []
