"""Pieces that a data server reads straight into memory of another process."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataserver import segment
from dataserver.segments import SegmentStore
from tests.unit.segment_support import overwrite
from wire.digest import BLOCK_BYTES, PIECE_BYTES, block_digest, part_matches
from wire.errors import BlockDamaged, BlockMissing

BLOCK = b"b" * 16
DATA = random.Random(1).randbytes(BLOCK_BYTES - 5000)
DIGEST = block_digest(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    made = SegmentStore(tmp_path)
    made.put(BLOCK, DIGEST, DATA)
    yield made
    made.close()


@pytest.fixture
def room() -> memoryview:
    return memoryview(mmap.mmap(-1, BLOCK_BYTES))


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 16), (0, 1), (3, 1), (3, 0), (2, 8), (15, 1)])
def test_what_fits_is_put_there_and_nowhere_else(
    store: SegmentStore, room: memoryview, first: int, count: int
) -> None:
    start, end = first * PIECE_BYTES, (first + count) * PIECE_BYTES if count else len(DATA)
    length, piece_digests, data = store.get(BLOCK, first, count, room)
    assert isinstance(data, memoryview)
    assert data == DATA[start:end]
    assert length == len(DATA)
    assert part_matches(DIGEST, length, first, piece_digests, data)
    room[:10] = b"0123456789"
    assert data[:10] == b"0123456789"


def test_what_does_not_fit_comes_by_itself(store: SegmentStore) -> None:
    small = memoryview(mmap.mmap(-1, PIECE_BYTES))
    assert store.get(BLOCK, 0, 0, small).data == DATA
    assert store.get(BLOCK, 1, 2, small).data == DATA[PIECE_BYTES : 3 * PIECE_BYTES]
    assert bytes(small) == bytes(PIECE_BYTES)


def test_a_damaged_header_is_told(store: SegmentStore, room: memoryview) -> None:
    place = store.locate(BLOCK)
    overwrite(place.path, place.header_offset + 20, b"\xff\xff")
    for count in (0, 1):
        with pytest.raises(BlockDamaged):
            store.get(BLOCK, 0, count, room)


def test_damaged_bytes_do_not_match_the_witness(store: SegmentStore, room: memoryview) -> None:
    place = store.locate(BLOCK)
    overwrite(place.path, place.payload_offset + PIECE_BYTES, b"\0\0\0\0\0\0\0\0")
    for first, count, right in ((0, 0, False), (0, 1, True), (1, 1, False)):
        length, piece_digests, data = store.get(BLOCK, first, count, room)
        assert part_matches(DIGEST, length, first, piece_digests, data) is right


def test_a_file_that_was_cut_has_less(store: SegmentStore, room: memoryview) -> None:
    place = store.locate(BLOCK)
    os.truncate(place.path, place.payload_offset + PIECE_BYTES)
    assert store.get(BLOCK, 0, 0, room).data == DATA[:PIECE_BYTES]
    assert store.get(BLOCK, 1, 1, room).data == b""


def test_bytes_that_the_disk_does_not_give_are_damage(
    store: SegmentStore, room: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(_handle: int, _views: list[memoryview], _offset: int) -> int:
        raise OSError(5, "bad sector")

    monkeypatch.setattr(os, "preadv", preadv)
    for count in (0, 1):
        with pytest.raises(BlockDamaged):
            store.get(BLOCK, 0, count, room)


@pytest.mark.parametrize(("name", "count"), [("read_record_into", 0), ("read_into", 1)])
def test_a_block_that_is_deleted_meanwhile_is_missing(
    store: SegmentStore, room: memoryview, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    real = getattr(segment.Segment, name)

    def read(self: segment.Segment, view: memoryview, offset: int, *more: int) -> object:
        store.delete([BLOCK])
        store.maintain()
        return real(self, view, offset, *more)

    monkeypatch.setattr(segment.Segment, name, read)
    with pytest.raises(BlockMissing):
        store.get(BLOCK, 0, count, room)
