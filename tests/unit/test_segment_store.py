"""What the store on disk does beyond the contract: damage, repair and quarantine, deleting, full disks."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest

from dataserver import durable, segment, segments
from dataserver.index import SegmentRow
from dataserver.record import PAGE_BYTES, decode_head, decode_header, encode_header
from dataserver.segments import SegmentStore
from tests.unit.segment_support import (
    SMALL,
    abandon,
    block_id,
    check,
    content,
    damage_header,
    damage_payload,
    overwrite,
    put,
    remove_index,
)
from wire.digest import DIGEST_BYTES, PIECE_BYTES, Buffer, block_digest
from wire.errors import BlockConflict, BlockDamaged, BlockMissing, InternalError, NoSpace

T = TypeVar("T")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    return place


@pytest.fixture
def store(directory: Path) -> Iterator[SegmentStore]:
    made = SegmentStore(directory, segment_bytes=SMALL)
    yield made
    made.close()


# -- damage while it runs


def test_a_damaged_payload_loses_the_vote_and_no_other_block_does(store: SegmentStore) -> None:
    put(store, *range(5))
    damage_payload(store, 2)
    assert store.digest(block_id(2), 0, 0) != block_digest(content(2))
    assert store.get(block_id(2), 0, 0).data != content(2)
    store.delete([block_id(2)])
    check(store, 0, 1, 3, 4)


def test_only_the_damaged_pieces_lose_the_vote(store: SegmentStore) -> None:
    data = os.urandom(5 * PIECE_BYTES)
    store.put(block_id(1), block_digest(data), data)
    place = store.locate(block_id(1))
    overwrite(place.path, place.payload_offset + 2 * PIECE_BYTES + 77, b"\0\0\0\0\0\0")
    votes = [store.digest(block_id(1), piece, 1) == block_digest(data) for piece in range(5)]
    assert votes == [True, True, False, True, True]


def test_a_damaged_header_is_told(store: SegmentStore) -> None:
    put(store, *range(5))
    damage_header(store, 2)
    for call in (store.get, store.digest):
        with pytest.raises(BlockDamaged):
            call(block_id(2), 0, 0)
    assert store.length(block_id(2)) == len(content(2))


@pytest.mark.parametrize("harm", [damage_payload, damage_header])
def test_repair_keeps_the_losing_copy_as_it_was(
    directory: Path, store: SegmentStore, harm: Callable[[SegmentStore, int], None]
) -> None:
    put(store, *range(5))
    harm(store, 2)
    place, truth = store.locate(block_id(2)), content(2)
    raw = place.path.read_bytes()[place.header_offset : place.payload_offset + place.length]
    assert store.repair(block_id(2), block_digest(truth), truth, "lost 2 to 3") == "replaced"
    check(store, *range(5))
    assert store.repair(block_id(2), block_digest(truth), truth, "again") == "good"
    (kept,) = (directory / "quarantine").glob("*.raw")
    assert kept.read_bytes() == raw
    note = json.loads(kept.with_suffix(".json").read_text())
    assert note["note"] == "lost 2 to 3"
    assert note["block"] == block_id(2).hex()
    assert note["expected_digest"] == block_digest(truth).hex()
    assert (note["found_digest"] is None) == (harm is damage_header)
    assert store.status()["quarantined"] == 1
    store.maintain()
    check(store, *range(5))
    assert place.path.read_bytes()[place.header_offset :][:PAGE_BYTES] == bytes(PAGE_BYTES)


def test_repair_replaces_a_copy_whose_recorded_piece_digests_are_wrong(store: SegmentStore) -> None:
    """The vote on the whole block, computed anew, is right; those on some of its pieces are not."""
    data = random.Random(2).randbytes(3 * PIECE_BYTES)
    digest = block_digest(data)
    store.put(block_id(1), digest, data)
    place = store.locate(block_id(1))
    raw = place.path.read_bytes()
    head = decode_head(raw[:PAGE_BYTES])
    assert head is not None
    header = decode_header(raw[place.header_offset :], head.number, place.header_offset)
    assert header is not None
    overwrite(place.path, place.header_offset, encode_header(header._replace(pieces=bytes(3 * DIGEST_BYTES))))
    assert store.digest(block_id(1), 0, 0) == digest
    assert store.digest(block_id(1), 0, 1) != digest
    assert store.repair(block_id(1), digest, data, "wrong digests of pieces") == "replaced"
    assert store.digest(block_id(1), 0, 1) == digest
    assert store.repair(block_id(1), digest, data, "again") == "good"


def test_putting_a_damaged_block_again_heals_it(store: SegmentStore) -> None:
    put(store, *range(5))
    damage_payload(store, 1)
    damage_header(store, 2)
    put(store, 1, 2)
    check(store, *range(5))
    assert store.status()["quarantined"] == 2
    damage_header(store, 3)
    with pytest.raises(BlockConflict):
        store.put(block_id(3), block_digest(b"other"), b"other")


class Killed(BaseException):
    """Stands for the end of the process at this very call."""


def test_a_repair_can_be_killed_at_any_step(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each write, sync and rename of a repair the process ends; what it leaves is looked at."""
    steps, steps_left = 0, -1

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            nonlocal steps, steps_left
            if steps_left == 0:
                raise Killed
            steps, steps_left = steps + 1, steps_left - 1
            return call(*arguments, **options)

        return step

    for name in ("pwrite", "fsync", "fdatasync", "open"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(Path, "replace", watched(Path.replace))
    truth = content(3)
    attempt = 0
    while True:
        place = tmp_path / f"attempt-{attempt}"
        place.mkdir()
        steps_left = -1
        store = SegmentStore(place)
        put(store, *range(6))
        store.maintain()
        damage_payload(store, 3)
        wrong = store.get(block_id(3), 0, 0).data
        steps_left = attempt
        try:
            assert store.repair(block_id(3), block_digest(truth), truth, "test") == "replaced"
        except Killed:
            pass
        finished, steps_left = steps_left > 0, -1
        left = SegmentStore(abandon(place, tmp_path / f"left-{attempt}"))
        now = left.get(block_id(3), 0, 0).data
        kept = list((tmp_path / f"left-{attempt}" / "quarantine").glob("*.raw"))
        assert now in (truth, wrong)
        assert now == wrong or [file.read_bytes()[PAGE_BYTES:] for file in kept] == [wrong]
        left.repair(block_id(3), block_digest(truth), truth, "again")
        check(left, *range(6))
        assert left.status()["quarantined"] == 1
        left.maintain()
        check(left, *range(6))
        left.close()
        store.close()
        attempt += 1
        if finished:
            break
    assert attempt > 8


# -- deleting


def test_space_comes_back_and_empty_segments_go(directory: Path, store: SegmentStore) -> None:
    put(store, *range(40))
    store.maintain()
    before = sum(file.stat().st_blocks for file in (directory / "segments").iterdir())
    store.delete([block_id(number) for number in range(35)])
    store.maintain()
    check(store, *range(35, 40))
    after = sum(file.stat().st_blocks for file in (directory / "segments").iterdir())
    assert after < before / 3
    assert store.status()["segments"] == len(list((directory / "segments").iterdir()))
    names = {file.name for file in (directory / "segments").iterdir()}
    store.delete([block_id(number) for number in range(35, 40)])
    store.maintain()
    left = {file.name for file in (directory / "segments").iterdir()}
    assert left == {max(names)}, "only the newest segment stays, so that no number is used again"


class Watched(dict[int, segment.Segment]):
    """The segments of a store; `looked` is called when all of them are about to be gone through."""

    looked: Callable[[], None]

    def items(self) -> ItemsView[int, segment.Segment]:
        self.looked()
        return super().items()


def test_a_segment_that_is_begun_while_others_are_unlinked_is_kept(store: SegmentStore) -> None:
    put(store, *range(40))
    store.delete([block_id(number) for number in range(40)])
    begun = [threading.Thread(target=put, args=(store, *numbers)) for numbers in ((41, 42), (43, 44, 45))]
    waiting = list(begun)

    def looked() -> None:
        """Let a put have the time that it needs, if it does not wait for this."""
        if waiting:
            thread = waiting.pop()
            thread.start()
            thread.join(0.2)

    store._segments = Watched(store._segments)
    store._segments.looked = looked
    store._unlink_empty()
    for thread in begun:
        thread.join()
    check(store, *range(41, 46))


def test_what_is_to_be_synced_is_only_changed_by_who_appends(store: SegmentStore) -> None:
    """A sync goes through it, and then forgets it."""

    class Guarded(set[int]):
        def add(self, number: int) -> None:
            assert store._appends.locked()
            super().add(number)

    store._unsynced = Guarded()
    put(store, 1, 2)
    store.delete([block_id(1)])
    store.maintain()
    check(store, 2)


def test_deleted_blocks_do_not_come_back_on_a_rebuild(directory: Path, store: SegmentStore) -> None:
    put(store, *range(20))
    store.delete([block_id(number) for number in range(0, 20, 2)])
    store.maintain()
    remove_index(directory)
    copy = SegmentStore(directory)
    check(copy, *range(1, 20, 2))
    copy.close()


def test_a_stale_note_of_free_space_hits_no_other_block(directory: Path) -> None:
    """Rows of `freed` that lie (with a right checksum) where another block is now are not believed."""
    store = SegmentStore(directory)
    put(store, *range(5))
    entry = store._index.get(block_id(2))
    assert entry is not None
    store._index.free(entry._replace(block=block_id(77)))
    store.maintain()
    check(store, *range(5))
    store.close()


# -- disks


def test_a_full_disk_keeps_nothing_and_loses_nothing(
    directory: Path, store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, 0, 1)
    size = store.locate(block_id(1)).path.stat().st_size
    real = os.pwrite
    room = 20_000

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "full")
        written = real(handle, memoryview(data)[:room], offset)
        room -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    big = random.Random(1).randbytes(100_000)
    with pytest.raises(NoSpace):
        store.put(block_id(9), block_digest(big), big)
    monkeypatch.setattr(os, "pwrite", real)
    assert store.locate(block_id(1)).path.stat().st_size - size < PAGE_BYTES
    check(store, 0, 1)
    put(store, 2)
    check(store, 0, 1, 2)
    copy = SegmentStore(abandon(directory, directory.parent / "copy"))
    check(copy, 0, 1, 2)
    copy.close()


def test_the_reserve_is_kept_for_deleting(directory: Path) -> None:
    store = SegmentStore(directory, reserve_bytes=2**60)
    with pytest.raises(NoSpace):
        put(store, 1)
    assert store.status()["free_bytes"] == 0
    assert store.count() == 0
    store.close()


def test_losing_copies_leave_the_reserve_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk at its reserve on which many copies are damaged: the quarantine must not fill it."""
    reserve = 1_000_000
    room = 10_000_000

    def free() -> int:
        return room - sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())

    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=free(), f_frsize=1))
    store = SegmentStore(directory, reserve_bytes=reserve)
    long = [number for number in range(40) if len(content(number)) >= 150_000]
    put(store, *long)
    for number in long:
        damage_payload(store, number)
    room -= free() - reserve
    refused = 0
    for number in long:
        try:
            store.repair(block_id(number), block_digest(content(number)), content(number), "")
        except NoSpace:
            refused += 1
    assert 0 < refused < len(long)
    assert free() >= reserve // 2 - 3 * 4096, "but for what was written down of the copies"
    assert store.quarantine.count == len(long) - refused, "what was not replaced stays where it is"
    store.close()


def test_deleting_makes_room_while_the_index_cannot_be_saved(
    directory: Path, store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk there is no room for the index, before something was freed."""

    def save(_: Iterable[SegmentRow]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    def used() -> int:
        return sum(file.stat().st_blocks for file in (directory / "segments").iterdir())

    monkeypatch.setattr(segments, "UNSAVED_LIMIT", 1)
    put(store, *range(40))
    store.maintain()
    before = used()
    with monkeypatch.context() as full:
        full.setattr(store._index, "save", save)
        store.delete([block_id(number) for number in range(35)])
        with pytest.raises(NoSpace):
            store.maintain()
    assert used() < before / 3
    check(store, *range(35, 40))


def test_a_store_whose_index_has_no_room_ends_in_order(
    directory: Path, store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_: Iterable[SegmentRow]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(segments, "UNSAVED_LIMIT", 1)
    put(store, 1)
    monkeypatch.setattr(store._index, "save", save)
    store.delete([block_id(1)])
    with pytest.raises(NoSpace):
        for number in range(2, 10):
            put(store, number)
    store.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store._index.segment_rows()


def test_after_a_failed_sync_nothing_more_is_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SegmentStore(directory)
    put(store, 1)

    def fdatasync(handle: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(InternalError):
        store.sync()
    monkeypatch.undo()
    with pytest.raises(InternalError):
        store.sync()
    with pytest.raises(InternalError):
        put(store, 2)
    assert store.status()["disk_failure"] == "broken disk"
    assert store.get(block_id(1), 0, 0).data == content(1)
    store.close()
    assert SegmentStore(directory).status()["disk_failure"] is None


def test_a_put_that_the_disk_fails_is_refused_and_no_defect(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(handle: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, "broken disk")

    put(store, 1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", pwrite)
        with pytest.raises(InternalError, match="the disk failed"):
            put(store, 2)
    put(store, 3)
    assert [store.length(block_id(number)) is None for number in (1, 2, 3)] == [False, True, False]


def test_unreadable_bytes_are_damage(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 1)

    def pread(handle: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(BlockDamaged):
        store.get(block_id(1), 0, 0)


def test_what_syncs_and_when(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (synced.append(handle), real(handle))[1])
    put(store, 1, 2)
    assert synced == []
    store.sync()
    assert len(synced) == 1
    store.sync()
    assert len(synced) == 1, "nothing was put since"


def test_a_moved_block_is_read_at_its_new_place(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look into the index and the read, the block is repaired and its old place freed."""
    put(store, 1, 2)
    damage_payload(store, 1)
    real = segment.Segment.look
    pending = [True]

    def look(self: segment.Segment, offset: int, length: int, use: Callable[[Buffer], T], of: int) -> T:
        if pending.pop() if pending else False:
            store.repair(block_id(1), block_digest(content(1)), content(1), "test")
            store.maintain()
        return real(self, offset, length, use, of)

    monkeypatch.setattr(segment.Segment, "look", look)
    assert store.get(block_id(1), 0, 0).data == content(1)
    pending.append(True)
    monkeypatch.setattr(store, "repair", lambda *arguments: store.delete([block_id(2)]))
    with pytest.raises(BlockMissing):
        store.get(block_id(2), 0, 0)


def test_holes_can_be_punched_here(tmp_path: Path) -> None:
    """If not, the tests of freed space above test the fallback only."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 16384)
    with file.open("r+b") as opened:
        assert durable.punch_hole(opened.fileno(), 4096, 8192)
    assert file.read_bytes() == b"x" * 4096 + bytes(8192) + b"x" * 4096


@pytest.mark.parametrize("length", [100, PIECE_BYTES, 300_001])
def test_a_header_is_never_written_before_its_payload(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """So that a kill never leaves a header that can be read before bytes that cannot."""
    put(store, 0)
    offsets: list[int] = []
    real = os.pwrite

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        offsets.append(offset)
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = bytes(length)
    store.put(block_id(1), block_digest(data), data)
    place = store.locate(block_id(1))
    in_one_go = length >= segment.DIRECT_BYTES
    assert offsets == [place.header_offset] if in_one_go else [place.payload_offset, place.header_offset]


def test_bytes_of_a_place_that_was_freed_meanwhile_are_not_given_out(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reads of the header and of the bytes, the block is deleted and its place freed."""
    put(store, 1)
    real = segment.Segment.look
    pending = [True]

    def look(self: segment.Segment, offset: int, length: int, use: Callable[[Buffer], T], of: int) -> T:
        if pending:
            pending.pop()
            store.delete([block_id(1)])
            store.maintain()
        return real(self, offset, length, use, of)

    monkeypatch.setattr(segment.Segment, "look", look)
    with pytest.raises(BlockMissing):
        store.get(block_id(1), 0, 0)


@pytest.mark.parametrize(("damaged", "left"), [("newer", "older"), ("older", "newer"), ("none", "newer")])
def test_of_two_records_with_one_id_the_later_good_one_counts(
    directory: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, left: str
) -> None:
    """As a repair leaves them that was interrupted before the older one's space was freed."""
    store = SegmentStore(directory)
    put(store, 1, 2)
    places = {"older": store.locate(block_id(1))}
    monkeypatch.setattr(store._index, "free", lambda entry: None)
    damage_payload(store, 1)
    store.repair(block_id(1), block_digest(content(1)), content(1), "test")
    places["newer"] = store.locate(block_id(1))
    store.close()
    overwrite(places["older"].path, places["older"].payload_offset, content(1))
    if damaged in places:
        overwrite(places[damaged].path, places[damaged].payload_offset, b"\xff\xfe\xfd\xfc")
    remove_index(directory)
    store = SegmentStore(directory)
    check(store, 1, 2)
    assert store.locate(block_id(1)) == places[left]
    store.maintain()
    check(store, 1, 2)
    store.close()
