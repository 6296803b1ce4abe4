"""Commits, file maps, reference counts."""

from __future__ import annotations

import asyncio
import random
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

import pytest

from metaserver import contents
from tests.unit.metaserver.harness import DIRECTORY, Harness
from wire.errors import FileTooLarge, InternalError, InvalidArgument, SessionUnknown, StaleFile
from wire.messages import (
    SMALL_BLOCK_BYTES,
    SMALL_FILES_AT_ONCE,
    AttributeChanges,
    Attributes,
    BlockRecord,
    Commit,
    Extent,
    Ticket,
)

MAX_BYTES = 2**63 - 1


class Tracer(Protocol):
    """What sys.settrace takes."""

    def __call__(self, _frame: FrameType, event: str, _argument: object) -> Tracer: ...


def test_a_commit_is_what_a_file_is(meta: Harness) -> None:
    file = meta.create(1, b"a")
    record = meta.new_block(1000)
    after = meta.commit(file.ino, Extent(100, 900, record.block, 50), blocks=[record], extend_to=5000)
    assert (after.size, after.allocated_bytes, after.version) == (5000, 900, file.version + 1)
    assert after.mtime_ns == after.ctime_ns > file.mtime_ns
    assert after.atime_ns == file.atime_ns
    run = meta.service.file_map(file.ino, 0, 10)
    assert (run.version, run.size, run.complete) == (after.version, 5000, True)
    assert run.extents == [(100, 900, record.block, 50, 1000, record.digest)]
    opened = meta.service.open(meta.session, file.ino, False)
    assert (opened.attributes, opened.map) == (after, run)
    assert meta.service.blocks(b"", 10) == [record]
    assert meta.service.files_of_block(record.block) == [file.ino]


def test_overwriting_splits_and_frees(meta: Harness) -> None:
    file = meta.create(1, b"a")
    first = meta.write(file.ino, 0, 1000)
    second = meta.write(file.ino, 400, 100)
    assert meta.extents(file.ino) == [
        (0, 400, first.block, 0),
        (400, 100, second.block, 0),
        (500, 500, first.block, 500),
    ]
    assert meta.wait(meta.service.garbage(10, 0)) == []
    meta.write(file.ino, 0, 400)
    meta.write(file.ino, 500, 500)
    assert meta.wait(meta.service.garbage(10, 0)) == [first.block]
    assert meta.service.witnesses([first.block, second.block]) == [None, second]
    assert meta.service.getattr(file.ino).allocated_bytes == 1000


def test_a_hole_erases(meta: Harness) -> None:
    file = meta.create(1, b"a")
    block = meta.write(file.ino, 0, 100).block
    after = meta.commit(file.ino, Extent(20, 30, None, 0))
    assert meta.extents(file.ino) == [(0, 20, block, 0), (50, 50, block, 50)]
    assert (after.size, after.allocated_bytes) == (100, 70)


def test_a_cut_comes_first(meta: Harness) -> None:
    file = meta.create(1, b"a")
    block = meta.write(file.ino, 0, 100).block
    record = meta.new_block(10)
    after = meta.commit(file.ino, Extent(60, 10, record.block, 0), blocks=[record], cut=30)
    assert meta.extents(file.ino) == [(0, 30, block, 0), (60, 10, record.block, 0)]
    assert after.size == 70
    assert meta.commit(file.ino, cut=65).size == 65
    emptied = meta.commit(file.ino, cut=0)
    assert (emptied.size, emptied.allocated_bytes) == (0, 0)
    assert sorted(meta.wait(meta.service.garbage(10, 0))) == [block, record.block]


def test_a_cut_to_the_same_size_is_a_change_and_none_is_not(meta: Harness) -> None:
    file = meta.create(1, b"a")
    same = meta.commit(file.ino, changes=AttributeChanges(atime_ns=5), extend_to=0)
    assert (same.version, same.mtime_ns, same.atime_ns) == (file.version, file.mtime_ns, 5)
    cut = meta.commit(file.ino, cut=0)
    assert cut.version == file.version + 1
    assert cut.mtime_ns > file.mtime_ns


def test_a_commit_leaves_the_mode_that_was_set_after_its_writes(meta: Harness) -> None:
    file = meta.create(1, b"a")
    meta.service.setattr(meta.ticket(), file.ino, AttributeChanges(mode=0o6755))
    meta.write(file.ino, 0, 10)
    assert meta.service.getattr(file.ino).mode == stat.S_IFREG | 0o6755


def test_changes_of_a_commit_win(meta: Harness) -> None:
    file = meta.create(1, b"a")
    changes = AttributeChanges(mode=0o4755, uid=3, gid=4, atime_ns=5, mtime_ns=6)
    after = meta.commit(file.ino, cut=0, extend_to=8, changes=changes)
    assert after[1:5] == (stat.S_IFREG | 0o4755, 1, 3, 4)
    assert (after.atime_ns, after.mtime_ns, after.size) == (5, 6, 8)


def test_blocks_may_be_shared_and_used_again(meta: Harness) -> None:
    file, other = meta.create(1, b"a"), meta.create(1, b"b")
    record = meta.write(file.ino, 0, 100)
    meta.commit(other.ino, Extent(7, 50, record.block, 50))
    meta.commit(other.ino, Extent(0, 7, record.block, 0), blocks=[record])
    assert meta.service.files_of_block(record.block) == [file.ino, other.ino]
    meta.unlink(1, b"a")
    assert meta.wait(meta.service.garbage(10, 0)) == []
    meta.unlink(1, b"b")
    assert meta.wait(meta.service.garbage(10, 0)) == [record.block]


def test_extents_that_continue_each_other_are_one(meta: Harness) -> None:
    file = meta.create(1, b"a")
    record = meta.new_block(300)
    parts = [Extent(start, 100, record.block, start) for start in (200, 0, 100)]
    meta.commit(file.ino, *parts, blocks=[record])
    assert meta.extents(file.ino) == [(0, 300, record.block, 0)]


def test_an_extent_is_joined_with_both_neighbours(meta: Harness) -> None:
    file = meta.create(1, b"a")
    record = meta.new_block(300)
    meta.commit(file.ino, Extent(200, 100, record.block, 200), blocks=[record])
    meta.commit(file.ino, Extent(0, 100, record.block, 0))
    meta.commit(file.ino, Extent(100, 100, record.block, 100))
    assert meta.extents(file.ino) == [(0, 300, record.block, 0)]


def test_commits_that_are_refused_change_nothing(meta: Harness) -> None:
    file = meta.create(1, b"a")
    known = meta.write(file.ino, 0, 100)
    dead = meta.write(file.ino, 200, 100)
    meta.commit(file.ino, cut=200)
    fresh = meta.new_block(100)
    before = (meta.service.getattr(file.ino), meta.extents(file.ino), meta.service.blocks(b"", 10))
    refused = [
        ([Extent(0, 10, fresh.block, 0)], []),
        ([Extent(0, 10, fresh.block, 91)], [fresh]),
        ([Extent(0, 101, known.block, 0)], []),
        ([Extent(0, 10, fresh.block, 0), Extent(5, 10, known.block, 0)], [fresh]),
        ([Extent(0, 10, dead.block, 0)], []),
        ([Extent(0, 10, dead.block, 0)], [dead]),
        ([Extent(0, 10, known.block, 0)], [known._replace(length=99)]),
        ([Extent(0, 10, known.block, 0)], [known._replace(digest=b"x" * 32)]),
        ([Extent(0, 10, fresh.block, 0)], [fresh, fresh._replace(length=99)]),
        ([Extent(0, 10, b"short", 0)], [BlockRecord(b"short", 100, b"x" * 32)]),
        ([Extent(0, 10, fresh.block, 0)], [fresh._replace(digest=b"x")]),
        ([Extent(0, 10, fresh.block, 0)], [fresh._replace(length=0)]),
        ([Extent(0, 10, fresh.block, 0)], [fresh._replace(length=2**20 + 1)]),
        ([Extent(0, 0, fresh.block, 0)], [fresh]),
    ]
    for extents, blocks in refused:
        with pytest.raises(InvalidArgument):
            meta.commit(file.ino, *extents, blocks=blocks, extend_to=1000)
    other_session = meta.open_session()
    foreign = meta.new_block(100, session=other_session)
    with pytest.raises(InvalidArgument):
        meta.commit(file.ino, Extent(0, 10, foreign.block, 0), blocks=[foreign])
    for reach in (MAX_BYTES + 1, 2**70):
        with pytest.raises(FileTooLarge):
            meta.commit(file.ino, extend_to=reach)
    assert (meta.service.getattr(file.ino), meta.extents(file.ino), meta.service.blocks(b"", 10)) == before


def test_the_largest_file(meta: Harness) -> None:
    file = meta.create(1, b"a")
    record = meta.new_block(10)
    meta.commit(file.ino, Extent(MAX_BYTES - 10, 10, record.block, 0), blocks=[record])
    assert meta.service.getattr(file.ino).size == MAX_BYTES
    assert meta.commit(file.ino, cut=MAX_BYTES - 5).allocated_bytes == 5


def test_what_is_no_file_has_no_contents(meta: Harness) -> None:
    directory = meta.create(1, b"d", DIRECTORY)
    with pytest.raises(InvalidArgument):
        meta.commit(directory.ino, cut=0)
    with pytest.raises(StaleFile):
        meta.commit(999, cut=0)
    with pytest.raises(SessionUnknown):
        meta.wait(
            meta.service.commit(
                Ticket(99, 0, 1), directory.ino, Commit(0, [], 0, [], AttributeChanges(), False)
            )
        )


def test_a_map_is_read_in_runs(meta: Harness) -> None:
    file = meta.create(1, b"a")
    record = meta.new_block(100)
    meta.commit(
        file.ino, *[Extent(start, 10, record.block, 0) for start in range(0, 200, 20)], blocks=[record]
    )

    def offsets(offset: int, limit: int) -> tuple[list[int], bool]:
        run = meta.service.file_map(file.ino, offset, limit)
        return [extent.offset for extent in run.extents], run.complete

    assert offsets(0, 3) == ([0, 20, 40], False)
    assert offsets(9, 2) == ([0, 20], False)
    assert offsets(10, 2) == ([20, 40], False)
    assert offsets(159, 2) == ([160, 180], True)
    assert offsets(169, 1) == ([160], False)
    assert offsets(170, 1) == ([180], True)
    assert offsets(190, 5) == ([], True)
    for offset, limit in ((-1, 1), (0, 0)):
        with pytest.raises(InvalidArgument):
            meta.service.file_map(file.ino, offset, limit)


def test_random_overwrites_equal_bytes(meta: Harness) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    file = meta.create(1, b"a")
    model: list[tuple[bytes, int] | None] = []
    for _ in range(150):
        cut = chance.choice([None, None, None, chance.randrange(300)])
        record = meta.new_block(100)
        extents, position = [], 0
        for _ in range(chance.randrange(4)):
            position += chance.randrange(60)
            length, block_offset = chance.randrange(1, 40), chance.randrange(60)
            block = chance.choice([record.block, record.block, None])
            extents.append(Extent(position, length, block, block_offset if block else 0))
            position += length
        reach = max(position, chance.randrange(300))
        chance.shuffle(extents)
        meta.commit(file.ino, *extents, blocks=[record], cut=cut, extend_to=reach)
        if cut is not None:
            del model[cut:]
        model += [None] * (reach - len(model))
        for extent in extents:
            for index in range(extent.length):
                found = None if extent.block is None else (extent.block, extent.block_offset + index)
                model[extent.offset + index] = found
        stored: list[tuple[bytes, int] | None] = [None] * meta.service.getattr(file.ino).size
        for offset, length, block, block_offset in meta.extents(file.ino):
            stored[offset : offset + length] = [(block, block_offset + index) for index in range(length)]
        assert stored == model, f"seed {seed}"
    assert meta.findings() == []


def test_large_commits_are_not_quadratic(meta: Harness) -> None:
    file = meta.create(1, b"a")
    count = 20_000
    blocks = [meta.new_block(10) for _ in range(count)]
    extents = [Extent(2 * 10 * index, 10, record.block, 0) for index, record in enumerate(blocks)]
    tenth = _count_steps(
        meta, lambda: meta.commit(file.ino, *extents[: count // 10], blocks=blocks[: count // 10])
    )
    whole = _count_steps(meta, lambda: meta.commit(file.ino, *extents, blocks=blocks))
    for name in ("lines of Python", "instructions of SQLite"):
        assert 0 < whole[name] < 20 * tenth[name], f"{name}: ten times the extents took {tenth} and {whole}"
    meta.unlink(1, b"a")


def _count_steps(meta: Harness, work: Callable[[], object]) -> Counter[str]:
    """Return how many lines of Python some work runs, and how many instructions SQLite, roughly."""
    steps: Counter[str] = Counter()
    instructions_at_once = 10

    def count_instructions() -> None:
        steps["instructions of SQLite"] += instructions_at_once

    def count_lines(_frame: FrameType, event: str, _argument: object) -> Tracer:
        steps["lines of Python"] += event == "line"
        return count_lines

    connection = meta.store.execute("SELECT 1").connection
    connection.set_progress_handler(count_instructions, instructions_at_once)
    before = sys.gettrace()
    sys.settrace(count_lines)
    try:
        work()
    finally:
        sys.settrace(before)
        connection.set_progress_handler(None, 0)
    return steps


def test_a_large_file_is_removed_piece_by_piece(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "REMOVED_AT_ONCE", 3)
    file = meta.create(1, b"a")
    records = [meta.new_block(10) for _ in range(8)]
    extents = [Extent(20 * index, 10, record.block, 0) for index, record in enumerate(records)]
    meta.commit(file.ino, *extents, blocks=records)
    meta.unlink(1, b"a")
    with pytest.raises(StaleFile):
        meta.service.getattr(file.ino)
    assert len(meta.wait(meta.service.garbage(100, 0))) == 3
    assert meta.findings() == []
    meta.restart()
    with pytest.raises(StaleFile):
        meta.service.getattr(file.ino)
    meta.reclaim(meta.session, [])
    meta.wait(meta.service.reaper.run_once())
    assert sorted(meta.wait(meta.service.garbage(100, 0))) == [record.block for record in records]
    assert meta.service.counts()["inodes"] == 1


def test_files_removed_one_after_the_other_lose_their_contents_together(meta: Harness) -> None:
    files = [meta.create(1, b"%d" % number) for number in range(20)]
    records = [meta.write(file.ino, 0, 10) for file in files]
    before = meta.store.totals.copy()

    async def remove_all() -> None:
        for number, file in enumerate(files):
            meta.unlink(1, b"%d" % number)
            with pytest.raises(StaleFile):
                meta.service.getattr(file.ino)
            with pytest.raises(StaleFile):
                meta.commit(file.ino, extend_to=5)
        assert meta.names(1) == []
        assert meta.store.totals["blocks"] == before["blocks"]
        begun: list[str] = []
        meta.store._connection.set_trace_callback(begun.append)
        for _ in range(1000):
            if meta.store.totals["garbage_blocks"] == len(records):
                break
            await asyncio.sleep(0.01)
        assert [statement for statement in begun if statement.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]

    meta.wait(remove_all())
    assert sorted(meta.wait(meta.service.garbage(100, 0))) == sorted(record.block for record in records)
    assert meta.service.counts()["inodes"] == 1


def test_contents_of_removed_files_go_also_after_a_kill(meta: Harness) -> None:
    record = meta.write(meta.create(1, b"a").ino, 0, 10)

    async def remove_without_time_for_more() -> None:
        meta.unlink(1, b"a")

    meta.wait(remove_without_time_for_more())
    assert meta.service.counts()["garbage_blocks"] == 0
    assert meta.findings() == []
    meta.restart()
    meta.reclaim(meta.session, [])
    meta.wait(meta.service.reaper.run_once())
    assert meta.wait(meta.service.garbage(100, 0)) == [record.block]
    assert meta.service.counts()["inodes"] == 1


@pytest.fixture
def lost(meta: Harness) -> Iterator[Attributes]:
    """A file whose first block is not known, as a repair leaves it."""
    ino = meta.create(1, b"lost").ino
    record = meta.write(ino, 0, 1000)
    meta.write(ino, 1000, 1000)
    with meta.changing() as connection:
        connection.execute("DELETE FROM blocks WHERE block = ?", (record.block,))
    meta.store.totals = meta.store._count()
    yield meta.service.getattr(ino)
    if meta.look_up(b"lost"):
        meta.unlink(1, b"lost")


def test_bytes_of_a_block_that_is_not_known_are_no_hole(meta: Harness, lost: Attributes) -> None:
    whole = meta.create(1, b"whole").ino
    meta.write(whole, 0, 1000)
    with pytest.raises(InternalError, match="fsck"):
        meta.service.file_map(lost.ino, 0, 10)
    with pytest.raises(InternalError, match="fsck"):
        meta.service.open(meta.session, lost.ino, False)
    assert [each is not None for each in meta.service.small_files([lost.ino, whole])] == [False, True]
    meta.commit(lost.ino, cut=0)
    assert meta.extents(lost.ino) == []


def test_a_file_with_a_block_that_is_not_known_can_be_removed(meta: Harness, lost: Attributes) -> None:
    """What fails in the reaper ends it, and with it all leases: locks of the dead would stay for ever."""
    meta.unlink(1, b"lost")
    meta.wait(meta.service.reaper.run_once())
    with pytest.raises(StaleFile):
        meta.service.getattr(lost.ino)
    assert meta.store.totals["garbage_blocks"] == 1


def test_counts(meta: Harness) -> None:
    file = meta.create(1, b"a")
    meta.service.link(meta.ticket(), file.ino, 1, b"b")
    meta.write(file.ino, 0, 10)
    meta.write(file.ino, 0, 20)
    counts = meta.service.counts()
    assert counts.pop("free_bytes") > 0
    assert counts.pop("free_inodes") > 0
    assert counts.pop("changes")
    assert counts.pop("database")
    assert counts.pop("fenced")
    assert not counts.pop("found_older")
    assert not counts.pop("in_doubt")
    assert counts == {
        "inodes": 2,
        "entries": 2,
        "blocks": 1,
        "block_bytes": 20,
        "garbage_blocks": 1,
        "lagging_replicas": 0,
        "sessions": 1,
    }
    meta.restart()
    assert meta.service.counts()["block_bytes"] == 20


def test_small_files_are_told_together_and_opened_by_none(meta: Harness) -> None:
    small, long, two, empty, gone = (meta.create(1, name).ino for name in (b"s", b"l", b"t", b"e", b"g"))
    meta.write(small, 0, 1000)
    meta.write(long, 0, SMALL_BLOCK_BYTES + 1)
    meta.write(two, 0, 1000)
    meta.write(two, 500, 100)
    meta.service.unlink(meta.ticket(), 1, b"g")
    found = meta.service.small_files([empty, small, gone, long, two, 1, 99999, small])
    assert [each is not None for each in found] == [False, True, False, False, False, False, False, True]
    assert found[1] == meta.service.open(meta.session, small, False)
    meta.service.unlink(meta.ticket(), 1, b"l")  # nobody has it open
    assert meta.service.small_files([long]) == [None]
    with pytest.raises(StaleFile):
        meta.service.getattr(long)
    with pytest.raises(InvalidArgument):
        meta.service.small_files([small] * (SMALL_FILES_AT_ONCE + 1))
