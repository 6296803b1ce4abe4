"""A database put back from a copy: nothing newer is deleted, and no number is given twice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from metaserver import fence, pages
from tests.unit.metaserver.harness import Harness
from wire.errors import SessionUnknown


def copied(meta: Harness) -> bytes:
    """Return the database as it is now, as bytes."""
    meta.stop()
    contents = meta.path.read_bytes()
    meta.start()
    return contents


def put_back(meta: Harness, copy: bytes, known: fence.Given = fence.NOTHING) -> fence.Fence:
    """Restart on a copy behind a fence."""
    meta.stop()
    meta.put_back(copy)
    with closing(pages.connect(meta.path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        made = fence.put_up(connection, meta.store.now_ns(), known)
    meta.start()
    return made


def test_what_is_newer_than_the_copy_is_not_collectable(meta: Harness) -> None:
    ended = meta.open_session()
    leftover = meta.new_block(session=ended)
    meta.service.close_session(ended)
    file = meta.create(1, b"a")
    superseded = meta.write(file.ino, 0, 100)
    kept = meta.write(file.ino, 0, 100)
    copy = copied(meta)
    newer_of_living = meta.write(file.ino, 0, 100)
    later = meta.open_session()
    newer = meta.new_block(session=later)
    asked = [each.block for each in (leftover, superseded, kept, newer_of_living, newer)]
    made = put_back(meta, copy)
    assert made.covers(later)
    assert made.covers(meta.session)
    assert not made.covers(ended)
    assert meta.wait(meta.service.collectable(asked)) == [leftover.block, superseded.block]
    assert meta.service.witnesses([kept.block]) == [kept]
    with meta.changing() as connection:
        assert fence.release(connection) == 3
    assert meta.wait(meta.service.collectable(asked)) == [
        each.block for each in (leftover, superseded, newer_of_living, newer)
    ]
    meta.session = meta.open_session()


def test_a_database_begun_in_the_place_of_a_lost_one_keeps_its_blocks(meta: Harness) -> None:
    file = meta.create(1, b"a")
    lost = [meta.write(file.ino, 0, 10).block, meta.new_block().block]
    meta.stop()
    meta.path.unlink()
    meta.start()
    sessions = [meta.open_session() for _ in range(3)]
    for session in sessions[1:]:
        meta.service.close_session(session)
    leftover = meta.new_block(session=sessions[1]).block
    assert meta.wait(meta.service.collectable([*lost, leftover])) == [leftover]
    assert meta.service.counts()["fenced"]
    with meta.changing() as connection:
        assert fence.release(connection) == 1
    assert meta.wait(meta.service.collectable([*lost, leftover])) == [*lost, leftover]


def test_numbers_go_on_above_all_that_were_given(meta: Harness) -> None:
    meta.now_ns = 1_800_000_000_000_000_000
    file = meta.create(1, b"a")
    meta.write(file.ino, 0, 10)
    copy = copied(meta)
    version = meta.service.getattr(file.ino).version
    given_inode = meta.create(1, b"b").ino
    meta.write(file.ino, 0, 20)
    given_session = meta.open_session()
    first = put_back(meta, copy)
    with pytest.raises(SessionUnknown):
        meta.create(1, b"c")
    meta.session = meta.open_session()
    assert meta.session == first.next_session > given_session
    assert meta.service.getattr(file.ino).version > version + 1
    inode = meta.create(1, b"c").ino
    assert inode > given_inode
    meta.now_ns += 10_000_000_000
    second = put_back(meta, copy)
    assert second.covers(meta.session), "the same copy once more gets other numbers"
    assert second.next_session > first.next_session
    meta.session = meta.open_session()
    assert meta.create(1, b"d").ino > inode


def test_numbers_go_on_above_those_that_are_known(meta: Harness) -> None:
    file = meta.create(1, b"a")
    copy = copied(meta)
    known = fence.Given(*(2**50 + number for number in range(4)))
    assert put_back(meta, copy, known).next_session == known.session + 1
    meta.session = meta.open_session()
    assert meta.service.getattr(file.ino).version == known.version + 1
    assert meta.create(1, b"b").ino > known.inode
    assert meta.store.epoch > known.epoch


def test_the_same_copy_once_more_gives_other_numbers_when_the_date_is_the_same(meta: Harness) -> None:
    file = meta.create(1, b"a")
    copy = copied(meta)
    date_ns, seen = meta.now_ns, []
    for _ in range(2):
        meta.now_ns = date_ns
        made = put_back(meta, copy)
        seen.append((made.next_session, meta.service.getattr(file.ino).version, meta.store.epoch))
    assert all(one != other for one, other in zip(*seen, strict=True))


def test_a_number_after() -> None:
    jump = fence.LEAST_JUMP
    assert fence.number_after(5, 0, jump, 0) == 5 + jump
    assert fence.number_after(5, 2**40, jump, 0) == 2**40 + 1
    assert fence.number_after(5, 2**63, jump, 0) == 5 + jump, "a number that was never given is damage"
    assert fence.number_after(5, 0, jump, 2**60) == 2**60 // 1000


def test_a_database_of_an_older_release_is_fenced_too(tmp_path: Path) -> None:
    meta = Harness(tmp_path)
    with meta.changing() as connection:
        connection.execute("DROP TABLE fences")
    meta.stop()
    with closing(pages.connect(meta.path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        made = fence.put_up(connection, 10**18)
    assert made.living == [meta.session]
    meta.start()
    meta.close()
