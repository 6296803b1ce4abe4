"""Records written past the page cache: the same bytes on disk, wherever the payload lay in memory."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from dataserver.segment import DIRECT_BYTES, DirectFile
from dataserver.segments import SegmentStore
from wire.digest import block_digest

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
