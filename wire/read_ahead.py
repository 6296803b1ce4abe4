"""What the kernel is asked to read into its memory before it is needed: advice only, which decides nothing.

Who goes through a large SQLite file reads it page by page, in the order of its tables, of which the kernel
guesses little. Safe in any thread; a call takes some 0.1 ms a MiB. Source: posix_fadvise(2)
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PIECE_BYTES = 1024 * 1024
"""Linux reads no more than a large request for one call."""
MOST_BYTES = 1 << 30
"""Of a larger file the rest is left to the kernel, which might have forgotten it again by then."""


def advise(descriptor: int, start: int, length: int) -> None:
    """Ask for bytes [start, start+length) of a file, at most PIECE_BYTES; what goes wrong changes nothing."""
    with suppress(OSError):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)


def read_file_ahead(path: Path) -> None:
    """Ask for a file all of which is about to be gone through.

    This process must not have it open by SQLite: to close a file drops the locks that SQLite has on it.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        for start in range(0, min(size, MOST_BYTES), PIECE_BYTES):
            advise(descriptor, start, PIECE_BYTES)
    finally:
        os.close(descriptor)
