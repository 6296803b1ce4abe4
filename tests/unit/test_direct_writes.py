"""Long records go past the page cache, in and out: the same bytes, wherever the payload lay in memory."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from dataserver.segment import DIRECT_BYTES, DirectFile
from dataserver.segments import SegmentStore
from tests.unit.page_cache import forget, is_in_memory
from wire.digest import PIECE_BYTES, block_digest

BLOCK = b"b" * 16
LENGTHS = (DIRECT_BYTES, DIRECT_BYTES + 4096, DIRECT_BYTES + 1, 1024 * 1024)


def in_memory(data: bytes, shift: int) -> memoryview:
    """Return the bytes in writable memory, so far behind a page's beginning."""
    memory = memoryview(mmap.mmap(-1, len(data) + 4096))[shift : shift + len(data)]
    memory[:] = data
    return memory


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shift", [0, 8])
def test_a_block_is_the_same_on_disk_wherever_it_was_in_memory(
    tmp_path: Path, length: int, shift: int
) -> None:
    data = random.Random(length).randbytes(length)
    for name, buffer in (("bytes", data), ("view", in_memory(data, shift))):
        (tmp_path / name).mkdir()
        store = SegmentStore(tmp_path / name)
        store.put(BLOCK, block_digest(data), buffer)
        assert store.get(BLOCK, 0, 0).data == data
        place = store.locate(BLOCK)
        store.close()
        raw = place.path.read_bytes()
        assert raw[place.payload_offset :].rstrip(b"\0") == data.rstrip(b"\0")
        assert len(raw) % 4096 == 0


def test_a_write_that_stops_half_way_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    data = random.Random(1).randbytes(DIRECT_BYTES)

    def half(handle: int, buffers: list[memoryview], offset: int) -> int:
        return os.pwrite(handle, buffers[0], offset)

    monkeypatch.setattr(os, "pwritev", half)
    DirectFile(path).write(b"h" * 4096, in_memory(data, 0), 0)
    assert path.read_bytes() == b"h" * 4096 + data


@pytest.mark.parametrize("length", [16 * PIECE_BYTES, 15 * PIECE_BYTES + 5, 3 * PIECE_BYTES])
def test_a_piece_is_read_as_its_record_was_written(tmp_path: Path, length: int) -> None:
    """A piece of a long block comes from the disk and leaves nothing behind; one of a shorter block stays."""
    data = random.Random(length).randbytes(length)
    store = SegmentStore(tmp_path)
    store.put(BLOCK, block_digest(data), data)
    place = store.locate(BLOCK)
    last = -(-length // PIECE_BYTES) - 1  # the kernel reads ahead from the header on, but not so far
    start = last * PIECE_BYTES
    room = memoryview(mmap.mmap(-1, PIECE_BYTES))
    forget(place.path)
    assert store.digest(BLOCK, last, 1) == block_digest(data)
    assert store.get(BLOCK, last, 1).data == data[start:]
    assert store.get(BLOCK, last, 1, room).data == data[start:]
    assert is_in_memory(place.path, place.payload_offset + start, length - start) == (length < DIRECT_BYTES)
    store.close()
