"""What the kernel has of a file in its memory, asked without having it read: mincore(2)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def is_in_memory(file: Path, offset: int = 0, length: int | None = None) -> bool:
    """Tell whether the kernel has all of a file, or of so many bytes from a page's offset on."""
    with file.open("rb") as opened:
        size = file.stat().st_size - offset if length is None else length
        with mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY, offset=offset) as mapped:
            pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
            first = ctypes.c_char.from_buffer(mapped)
            failed = _libc.mincore(ctypes.addressof(first), size, pages)
            del first
            assert not failed, os.strerror(ctypes.get_errno())
            return all(byte & 1 for byte in pages.raw)


def forget(file: Path) -> None:
    """Have the kernel forget what it has of a file; skip the test where it cannot."""
    with file.open("rb") as opened:
        os.fdatasync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_in_memory(file):
        pytest.skip("this file system has all in memory")
