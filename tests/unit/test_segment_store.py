"""What the store on disk does beyond the contract: damage, full disks, failed ones, syncs."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataserver import segment, segments
from dataserver.index import SegmentRow
from dataserver.record import PAGE_BYTES
from dataserver.segments import SegmentStore
from tests.unit.segment_support import (
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
from wire.digest import PIECE_BYTES, block_digest
from wire.errors import BlockDamaged, InternalError, NoSpace


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
