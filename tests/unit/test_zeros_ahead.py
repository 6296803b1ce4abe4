"""Zeros written ahead of the records: when, and that they never hit a record nor hide the end of them."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from dataserver import segment
from dataserver.record import PAGE_BYTES, record_bytes
from dataserver.segments import SegmentStore
from tests.support import take_seed
from tests.unit.segment_support import abandon, block_id, check, content, put, remove_index
from wire.digest import BLOCK_BYTES, block_digest
from wire.errors import InternalError


def test_zeros_are_written_ahead_where_puts_are_synced_one_by_one(directory: Path) -> None:
    store = SegmentStore(directory)
    put(store, 0)
    store.sync()
    assert store.wants_ahead
    store.write_ahead()
    path, end = store.locate(block_id(0)).path, PAGE_BYTES + record_bytes(len(content(0)))
    assert path.stat().st_size == end + segment.AHEAD_BYTES
    assert path.read_bytes()[end:] == bytes(segment.AHEAD_BYTES)
    assert not store.wants_ahead
    put(store, 1)
    store.sync()
    assert not store.wants_ahead
    assert store.locate(block_id(1)).header_offset == end
    assert path.stat().st_size == end + segment.AHEAD_BYTES
    store.close()
    assert path.stat().st_size == end + record_bytes(len(content(1)))


def test_no_zeros_are_written_ahead_of_a_long_write(directory: Path) -> None:
    store = SegmentStore(directory)
    data = bytes(BLOCK_BYTES)
    store.put(block_id(1), block_digest(data), data)
    store.sync()
    assert not store.wants_ahead
    store.close()


def test_zeros_written_while_blocks_are_put_hit_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Puts of all lengths, many past the zeros, beside a thread that writes zeros all the time."""
    monkeypatch.setattr(segment, "AHEAD_BYTES", 64 * 1024)
    seed = take_seed()
    dice = random.Random(seed)
    store = SegmentStore(directory, segment_bytes=8 * 1024 * 1024)
    ended = threading.Event()

    def write_ahead() -> None:
        while not ended.is_set():
            store.write_ahead()

    writer = threading.Thread(target=write_ahead)
    writer.start()
    try:
        blocks = [dice.randbytes(dice.choice([1, 4096, 9000, 65_536, 300_000])) for _ in range(300)]
        for number, data in enumerate(blocks):
            store.put(block_id(number), block_digest(data), data)
    finally:
        ended.set()
        writer.join()
    copy = SegmentStore(abandon(directory, directory.parent / "copy"))
    for opened in (store, copy):
        assert opened.status()["damaged_regions"] == 0
        for number, data in enumerate(blocks):
            assert opened.get(block_id(number), 0, 0).data == data, f"seed {seed}"
        opened.close()


def test_records_go_on_after_the_last_one_when_zeros_are_left_by_a_kill(directory: Path) -> None:
    store = SegmentStore(directory)
    put(store, 0)
    store.maintain()
    store.write_ahead()
    put(store, 1)
    end = store.locate(block_id(1)).header_offset + record_bytes(len(content(1)))
    for with_index in (True, False):
        left = abandon(directory, directory.parent / f"copy {with_index}")
        if not with_index:
            remove_index(left)
        copy = SegmentStore(left)
        check(copy, 0, 1)
        put(copy, 2)
        assert copy.locate(block_id(2)).header_offset == end
        copy.close()
    store.close()


def test_a_failed_sync_of_zeros_ends_all_writing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have dropped the pages of records with it."""
    store = SegmentStore(directory)
    put(store, 1)

    def fdatasync(handle: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(InternalError):
        store.write_ahead()
    with pytest.raises(InternalError):
        put(store, 2)


def test_no_zeros_are_written_into_the_reserve(directory: Path) -> None:
    store = SegmentStore(directory)
    put(store, 1)
    path = store.locate(block_id(1)).path
    size = path.stat().st_size
    store._reserve.size = 2**60
    store.write_ahead()
    assert path.stat().st_size == size
    store.close()


def test_an_unfinished_write_into_the_zeros_is_cut_off(directory: Path) -> None:
    store = SegmentStore(directory)
    put(store, 0)
    store.maintain()
    store.write_ahead()
    left = abandon(directory, directory.parent / "copy")
    path, end = left / "segments" / "00000000.seg", PAGE_BYTES + record_bytes(len(content(0)))
    with path.open("r+b") as file:
        file.seek(end + PAGE_BYTES)
        file.write(b"payload")
    copy = SegmentStore(left)
    assert path.stat().st_size == end
    put(copy, 1)
    assert copy.locate(block_id(1)).header_offset == end
    copy.close()
    store.close()


def test_nothing_is_written_ahead_in_a_full_segment(directory: Path) -> None:
    full = segment.create_segment(directory, 0)
    full.seal()
    full.write_ahead(2**30)
    assert full.size() == PAGE_BYTES
