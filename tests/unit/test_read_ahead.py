"""A file that is read ahead is in the kernel's memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.unit.page_cache import forget, is_in_memory
from wire.read_ahead import PIECE_BYTES, read_file_ahead


@pytest.mark.parametrize("size", [1, PIECE_BYTES, 5 * PIECE_BYTES + 4096])
def test_a_whole_file_is_read_at_once(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    forget(file)
    read_file_ahead(file)
    wait_until(lambda: is_in_memory(file), 5.0, "the file is in memory")
