"""Sectors that a disk cannot read: they cost the block that they are of, and hold up nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dataserver.scan
import dataserver.segment
from dataserver import offline
from dataserver.directory import DataDirectory
from dataserver.record import PAGE_BYTES
from dataserver.segment import Segment
from dataserver.segments import SegmentStore
from tests.unit.segment_support import (
    SMALL,
    block_id,
    check,
    content,
    damage_header,
    damage_payload,
    overwrite,
    put,
    remove_index,
)
from wire.digest import block_digest

SHORT, LONG = 7, 19
"""The blocks of 9,000 and 300,001 bytes: read through the page cache, and past it."""


class BadSectors:
    """Stands for `os`: a page that is named cannot be read. It can be written and freed, as on a disk."""

    def __init__(self) -> None:
        self.pages: set[tuple[str, int]] = set()

    def spoil(self, path: Path, offset: int) -> None:
        self.pages.add((str(path), offset // PAGE_BYTES))

    def _check(self, handle: int, offset: int, length: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        pages = range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1)
        if any((path, page) in self.pages for page in pages):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        self._check(handle, offset, length)
        return os.pread(handle, length, offset)

    def preadv(self, handle: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._check(handle, offset, sum(len(buffer) for buffer in buffers))
        return os.preadv(handle, buffers, offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> BadSectors:
    made = BadSectors()
    for module in (dataserver.scan, dataserver.segment):
        monkeypatch.setattr(module, "os", made)
    return made


@pytest.fixture
def store(tmp_path: Path, disk: BadSectors) -> Iterator[SegmentStore]:
    made = SegmentStore(tmp_path, segment_bytes=SMALL)
    yield made
    made.close()


def spoil_header(disk: BadSectors, store: SegmentStore, number: int) -> None:
    place = store.locate(block_id(number))
    disk.spoil(place.path, place.header_offset)


def spoil_payload(disk: BadSectors, store: SegmentStore, number: int) -> None:
    place = store.locate(block_id(number))
    disk.spoil(place.path, place.payload_offset)


@pytest.mark.parametrize("spoil", [spoil_header, spoil_payload])
@pytest.mark.parametrize("number", [SHORT, LONG])
def test_a_copy_that_cannot_be_read_is_repaired(
    store: SegmentStore, disk: BadSectors, spoil: Any, number: int
) -> None:
    put(store, SHORT, LONG)
    spoil(disk, store, number)
    assert store.repair(block_id(number), block_digest(content(number)), content(number), "") == "replaced"
    check(store, SHORT, LONG)


@pytest.mark.parametrize("number", [SHORT, LONG])
def test_what_can_be_read_of_a_losing_copy_is_kept(
    store: SegmentStore, disk: BadSectors, number: int
) -> None:
    put(store, number)
    spoil_header(disk, store, number)
    store.repair(block_id(number), block_digest(content(number)), content(number), "it is bad")
    [kept] = store.quarantine.page("", 9)
    assert kept["note"] == "it is bad; pages that cannot be read, and are zeros here: 1"
    assert store.quarantine.read(kept["name"]) == bytes(PAGE_BYTES) + content(number)


def test_putting_a_block_again_heals_a_copy_that_cannot_be_read(
    store: SegmentStore, disk: BadSectors
) -> None:
    put(store, SHORT)
    spoil_payload(disk, store, SHORT)
    put(store, SHORT)
    check(store, SHORT)


def test_space_is_freed_beside_a_record_whose_header_cannot_be_read(
    store: SegmentStore, disk: BadSectors
) -> None:
    put(store, SHORT, LONG, 1, 2, 3)
    spoil_header(disk, store, SHORT)
    store.delete([block_id(number) for number in (SHORT, LONG, 1)])
    used = _used_bytes(store)
    store.maintain()
    assert _used_bytes(store) < used - len(content(LONG))
    assert len(store._index.freed(9)) == 1, "it is remembered"
    check(store, 2, 3)


def test_a_header_that_can_be_read_again_is_freed_later(
    store: SegmentStore, disk: BadSectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, SHORT, 1)
    spoil_header(disk, store, SHORT)
    store.delete([block_id(SHORT)])
    store.maintain()
    disk.pages.clear()
    monkeypatch.setattr(store._freeing, "_look_again_at", 0.0)
    store.maintain()
    assert not store._index.freed(1)
    check(store, 1)


def test_a_place_that_cannot_be_freed_holds_up_no_other(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, SHORT, 1, LONG, 2, 3)
    stuck = store.locate(block_id(SHORT))
    later = store.locate(block_id(LONG)).path
    assert stuck.path != later
    store.delete([block_id(number) for number in (SHORT, LONG)])
    free = Segment.free

    def fail_once(segment: Segment, offset: int, length: int) -> None:
        if (segment.path, offset) == (stuck.path, stuck.header_offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        free(segment, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "free", fail_once)
        with pytest.raises(OSError, match="Input/output"):
            store.maintain()
    assert [entry.block for entry in store._index.freed(9)] == [block_id(SHORT)], "it is remembered"
    assert not later.exists()
    store.maintain()
    assert not store._index.freed(9)
    check(store, 1, 2, 3)


def _used_bytes(store: SegmentStore) -> int:
    return sum(segment.path.stat().st_blocks * 512 for segment in store._segments.values())


@pytest.mark.parametrize("victim", range(5))
@pytest.mark.parametrize("has_index", [True, False])
def test_a_start_finds_all_but_the_record_whose_header_cannot_be_read(
    tmp_path: Path, disk: BadSectors, victim: int, has_index: bool
) -> None:
    """Nothing of it is lost: it is there again when the disk can read it."""
    numbers = [SHORT, LONG, 1, 2, 3]
    store = SegmentStore(tmp_path)
    put(store, *numbers)
    spoil_header(disk, store, numbers[victim])
    if not has_index:
        store.maintain()
    store._index.close()  # a kill
    if not has_index:
        remove_index(tmp_path)

    started = SegmentStore(tmp_path)
    check(started, *numbers[:victim], *numbers[victim + 1 :])
    assert started.status()["damaged_regions"] == 1
    put(started, 4)
    started.close()

    again = SegmentStore(tmp_path)
    assert again.status()["damaged_regions"] == 1, "it is counted once"
    again.close()

    disk.pages.clear()
    healed = SegmentStore(tmp_path)
    check(healed, *numbers, 4)
    assert healed.status()["damaged_regions"] == 0
    healed.close()


def start_past_a_bad_sector(directory: Path, disk: BadSectors) -> SegmentStore:
    """A store with the blocks LONG, 1 and 2, all durable, behind a record whose header cannot be read."""
    store = SegmentStore(directory)
    put(store, SHORT, LONG, 1, 2)
    spoil_header(disk, store, SHORT)
    store._index.close()  # a kill: the next start scans
    started = SegmentStore(directory)
    started.sync()
    check(started, LONG, 1, 2)
    return started


def test_what_rots_behind_a_bad_sector_stays_a_block_and_is_quarantined(
    tmp_path: Path, disk: BadSectors
) -> None:
    """It was durable: it is no write that a power loss left unfinished."""
    started = start_past_a_bad_sector(tmp_path, disk)
    damage_payload(started, LONG)
    started.close()
    again = SegmentStore(tmp_path)
    assert again.length(block_id(LONG)) is not None, "it votes, and loses"
    assert again.repair(block_id(LONG), block_digest(content(LONG)), content(LONG), "") == "replaced"
    assert again.quarantine.count == 1
    check(again, LONG, 1, 2)
    again.close()


def test_bytes_whose_header_is_gone_behind_a_bad_sector_are_not_cut_off(
    tmp_path: Path, disk: BadSectors
) -> None:
    started = start_past_a_bad_sector(tmp_path, disk)
    place = started.locate(block_id(2))
    started.close()
    overwrite(place.path, place.header_offset, bytes(PAGE_BYTES))
    SegmentStore(tmp_path).close()
    with place.path.open("rb") as file:
        file.seek(place.payload_offset)
        assert file.read(place.length) == content(2)


def test_damage_behind_a_bad_sector_is_counted_once(tmp_path: Path, disk: BadSectors) -> None:
    started = start_past_a_bad_sector(tmp_path, disk)
    damage_header(started, 1)
    started.close()
    for _ in range(3):
        again = SegmentStore(tmp_path)
        assert again.status()["damaged_regions"] == 2
        again.close()
    disk.pages.clear()
    for _ in range(2):
        healed = SegmentStore(tmp_path)
        assert healed.status()["damaged_regions"] == 1
        healed.close()


def test_a_segment_whose_first_page_cannot_be_read_keeps_its_blocks(tmp_path: Path, disk: BadSectors) -> None:
    store = SegmentStore(tmp_path)
    put(store, SHORT, LONG)
    path = store.locate(block_id(SHORT)).path
    store.close()
    disk.spoil(path, 0)
    started = SegmentStore(tmp_path)
    check(started, SHORT, LONG)
    put(started, 1)
    started.close()


def test_a_directory_is_looked_at_past_what_cannot_be_read(tmp_path: Path, disk: BadSectors) -> None:
    DataDirectory(tmp_path, "test", 1).release()
    store = SegmentStore(tmp_path)
    put(store, SHORT, LONG, 1, 2)
    spoil_header(disk, store, LONG)
    spoil_payload(disk, store, 1)
    place = store.locate(block_id(LONG))
    store.close()
    listing = offline.read(tmp_path, verify=True)
    assert {replica.block: replica.verdict for replica in listing.replicas} == {
        block_id(SHORT): "good",
        block_id(1): "corrupt",
        block_id(2): "good",
    }
    [region] = listing.damage
    assert (region.path, region.offset) == (place.path, place.header_offset)
    assert "cannot read" in region.reason
