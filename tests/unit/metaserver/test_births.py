"""Files that are made by their first commit: one transaction, once, and only for a session that is alone."""

from __future__ import annotations

import stat

import pytest

from tests.unit.metaserver.harness import FILE, Harness
from wire.errors import AlreadyExists, InvalidArgument, NotAlone, NotFound, SessionUnknown, StaleFile
from wire.messages import AttributeChanges, Birth, Commit

EMPTY = Commit(None, [], 0, [], AttributeChanges(), durable=False)
BIRTH = Birth(1, b"a", FILE | 0o640, 7, 8)


def reserve(meta: Harness) -> int:
    return meta.service.reserve_inodes(meta.session, 16)


def test_the_file_and_its_contents_come_together(meta: Harness) -> None:
    ino = reserve(meta)
    commit = EMPTY._replace(extend_to=5)
    made = meta.service.commit(meta.ticket(), ino, commit, None, BIRTH)
    assert meta.service.resolve(1, [b"a"]) == [made]
    assert (made.ino, made.mode, made.uid, made.gid, made.size) == (ino, FILE | 0o640, 7, 8, 5)
    directory = meta.service.getattr(1)
    assert directory.mtime_ns == directory.ctime_ns == made.atime_ns
    meta.unlink(1, b"a")
    assert meta.service.getattr(ino).nlink == 0, "it is open in the session"


def test_sent_again_it_is_answered_and_carried_out_once(meta: Harness) -> None:
    ino, ticket = reserve(meta), meta.ticket()
    made = meta.service.commit(ticket, ino, EMPTY, None, BIRTH)
    assert meta.service.commit(ticket, ino, EMPTY, None, BIRTH) == made
    meta.restart()
    assert meta.service.commit(ticket, ino, EMPTY, None, BIRTH) == made
    again = meta.service.commit(meta.ticket(), ino, EMPTY._replace(extend_to=9), None, BIRTH)
    assert (again.ino, again.size) == (ino, 9), "the inode is there: it is a commit like any other"
    assert meta.names(1) == [b"a"]


def test_a_name_that_is_taken_changes_nothing(meta: Harness) -> None:
    other = meta.create(1, b"a")
    with pytest.raises(AlreadyExists):
        meta.service.commit(meta.ticket(), reserve(meta), EMPTY, None, BIRTH)
    assert meta.service.resolve(1, [b"a"]) == [other]


def test_only_a_session_that_is_alone_may(meta: Harness) -> None:
    ino = reserve(meta)
    second = meta.service._sessions.open("second").session
    with pytest.raises(NotAlone):
        meta.service.commit(meta.ticket(), ino, EMPTY, None, BIRTH)
    with pytest.raises(StaleFile):
        meta.service.getattr(ino)
    meta.service.close_session(second)
    meta.service.commit(meta.ticket(), ino, EMPTY, None, BIRTH)


def test_numbers_are_given_once_and_only_those_are_taken(meta: Harness) -> None:
    first = reserve(meta)
    assert reserve(meta) == first + 16
    assert meta.create(1, b"b").ino == first + 32
    meta.restart()
    assert reserve(meta) > first + 32
    for ino in (0, 1, 2**40, meta.create(1, b"c").ino):
        with pytest.raises(InvalidArgument):
            meta.service.commit(meta.ticket(), ino, EMPTY, None, BIRTH)
    meta.service.commit(meta.ticket(), first, EMPTY, None, BIRTH)
    for count in (0, -1, 4097):
        with pytest.raises(InvalidArgument):
            meta.service.reserve_inodes(meta.session, count)
    with pytest.raises(SessionUnknown):
        meta.service.reserve_inodes(meta.session + 99, 1)


def test_a_directory_that_was_removed_takes_no_file(meta: Harness) -> None:
    directory = meta.create(1, b"d", stat.S_IFDIR | 0o755)
    meta.service.rmdir(meta.ticket(), 1, b"d")
    with pytest.raises((NotFound, StaleFile)):
        meta.service.commit(meta.ticket(), reserve(meta), EMPTY, None, BIRTH._replace(parent=directory.ino))
