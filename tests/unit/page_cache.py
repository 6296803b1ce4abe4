"""What the kernel has of a file in its memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def is_in_memory(file: Path) -> bool:
    """Tell whether the kernel has all of a file."""
    with file.open("rb") as opened:
        size = file.stat().st_size
        try:
            return os.preadv(opened.fileno(), [bytearray(size)], 0, os.RWF_NOWAIT) == size
        except BlockingIOError:
            return False


def forget(file: Path) -> None:
    """Have the kernel forget what it has of a file; skip the test where it cannot, or does not tell."""
    with file.open("rb") as opened:
        os.fdatasync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        if is_in_memory(file):
            pytest.skip("this file system has all in memory")
    except OSError:
        pytest.skip("this file system does not tell what is in memory")
