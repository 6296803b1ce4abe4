"""Blocks that nothing refers to any more: who is told of them, when, and what may be collected."""

from __future__ import annotations

import pytest

from tests.unit.metaserver.harness import Harness
from wire.errors import InvalidArgument, SessionUnknown
from wire.messages import BlockRecord, Extent


def test_a_new_block_that_nothing_refers_to_is_garbage(meta: Harness) -> None:
    file = meta.create(1, b"a")
    record = meta.new_block()
    meta.commit(file.ino, blocks=[record])
    assert meta.wait(meta.service.garbage(10, 0)) == [record.block]


def test_garbage_is_told_page_by_page_oldest_first(meta: Harness) -> None:
    file = meta.create(1, b"a")
    for _ in range(3):
        meta.commit(file.ino, blocks=[meta.new_block() for _ in range(3)])  # of one age each
    found: list[bytes] = []
    while page := meta.wait(meta.service.garbage(2, 0, *found[-1:])):
        found += page
    assert found == meta.wait(meta.service.garbage(10, 0))
    assert len(set(found)) == 9
    meta.service.forget(found[:1])
    assert meta.wait(meta.service.garbage(10, 0, found[0])) == found[1:], "what is forgotten is no place"


def test_garbage_is_told_by_age_and_forgotten(meta: Harness) -> None:
    file = meta.create(1, b"a")
    first, second = meta.write(file.ino, 0, 10), meta.write(file.ino, 10, 10)
    meta.commit(file.ino, cut=10)
    meta.now_ns += 5_000_000_000
    meta.commit(file.ino, cut=0)
    assert meta.wait(meta.service.garbage(10, 0)) == [second.block, first.block]
    assert meta.wait(meta.service.garbage(1, 0)) == [second.block]
    assert meta.wait(meta.service.garbage(10, 1000)) == [second.block]
    assert meta.wait(meta.service.garbage(10, 10_000)) == []
    meta.service.forget([second.block, second.block, b"unknown"])
    assert meta.wait(meta.service.garbage(10, 0)) == [first.block]
    with pytest.raises(InvalidArgument):
        meta.wait(meta.service.garbage(0, 0))


def test_garbage_of_a_date_that_is_still_to_come_is_told_too(meta: Harness) -> None:
    file = meta.create(1, b"a")
    first, second = meta.write(file.ino, 0, 10), meta.write(file.ino, 10, 10)
    meta.commit(file.ino, cut=10)
    meta.now_ns += 10**18
    meta.commit(file.ino, cut=0)
    meta.now_ns -= 10**18 - 5_000_000_000
    assert meta.wait(meta.service.garbage(10, 1000)) == [second.block, first.block]
    assert meta.wait(meta.service.garbage(1, 1000)) == [second.block]
    assert meta.wait(meta.service.garbage(10, 10_000)) == [first.block]


def test_what_may_be_collected(meta: Harness) -> None:
    file = meta.create(1, b"a")
    other = meta.open_session()
    committed, superseded = meta.write(file.ino, 0, 10).block, meta.write(file.ino, 10, 10).block
    meta.commit(file.ino, cut=10)
    uncommitted = meta.new_block().block
    of_other = meta.new_block(session=other).block
    never_given = meta.new_block(session=other + 1).block
    asked = [committed, superseded, uncommitted, of_other, never_given, b"short", b""]
    assert meta.wait(meta.service.collectable(asked)) == [superseded]
    meta.service.close_session(other)
    assert meta.wait(meta.service.collectable(asked)) == [superseded, of_other]
    meta.service.forget([superseded])
    assert meta.wait(meta.service.collectable([superseded])) == []
    meta.service.close_session(meta.session)
    assert meta.wait(meta.service.collectable(asked)) == [superseded, uncommitted, of_other]


def test_what_is_abandoned_is_garbage_and_cannot_be_committed(meta: Harness) -> None:
    file = meta.create(1, b"a")
    committed = meta.write(file.ino, 0, 100)
    dropped, stranger = meta.new_block(50), BlockRecord((99).to_bytes(8, "big") + bytes(8), 5, bytes(32))
    for _ in range(2):
        meta.service.abandon_blocks(meta.session, [committed, dropped, stranger])
    assert meta.wait(meta.service.garbage(10, 0)) == [dropped.block]
    assert meta.wait(meta.service.collectable([committed.block, dropped.block, stranger.block])) == [
        dropped.block
    ]
    with pytest.raises(InvalidArgument):
        meta.commit(file.ino, Extent(0, 50, dropped.block, 0), blocks=[dropped])
    with pytest.raises(SessionUnknown):
        meta.service.abandon_blocks(99, [stranger])
    meta.service.forget([dropped.block])
    assert meta.service.counts()["garbage_blocks"] == 0


def test_garbage_is_told_only_when_a_power_loss_cannot_bring_back_who_needed_it(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted blocks whose last reference came back with an older log would be lost data."""
    synced = []
    sync = meta.log.sync

    async def noted() -> None:
        synced.append(True)
        await sync()

    monkeypatch.setattr(meta.log, "sync", noted)
    ino = meta.create(1, b"f").ino
    old = meta.write(ino, 0, 10)
    meta.write(ino, 0, 10)
    synced.clear()
    assert meta.wait(meta.service.garbage(10, 0)) == [old.block]
    assert synced
    synced.clear()
    assert meta.wait(meta.service.collectable([old.block])) == [old.block]
    assert synced
