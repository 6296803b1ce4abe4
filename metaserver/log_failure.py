"""A log that could not be made durable: nothing more is put behind it, and the next start writes it again.

When a sync fails, the kernel may forget what it could not write, while it can still be read: a second sync
would succeed without it. So a failed one is remembered until the database is opened anew, whoever asked for
it, SQLite itself too: meanwhile no checkpoint overwrites pages of the database that only such a log could
mend, and no change is taken. A start cannot know what an earlier process was told. So it writes again what is
in the log beyond what was noted to be durable (metaserver.log_mark), from what it reads.
Source: https://wiki.postgresql.org/wiki/Fsync_Errors
Threading: any thread.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from metaserver import frames

PIECE_BYTES = 1024 * 1024

_failures: dict[bytes, str] = {}
"""Why the log of a database could not be made durable."""

logger = logging.getLogger("metaserver")


def note(database: Path, why: str) -> None:
    """Remember that a sync of a database's log failed."""
    if _failures.setdefault(os.fsencode(database.absolute()), why) is why:
        logger.critical("the log of %s could not be made durable: %s; no more changes", database, why)


def reason(database: bytes) -> str | None:
    """Return why the log of a database (its absolute path) could not be made durable; None if it could."""
    return _failures.get(database)


def forget(database: bytes) -> None:
    """A database is opened that no connection of this process has open."""
    _failures.pop(database, None)


def write_again(log: Path, durable: int, committed: int) -> None:
    """Make a log durable that this process did not write. No connection that writes may be open.

    Args:
        log: its file.
        durable: so many frames of it are, its header too if there are any.
        committed: so many are to be.

    Raises:
        OSError: it could not be made durable.
    """
    start = frames.LOG_HEADER_BYTES + durable * frames.FRAME_BYTES if durable else 0
    end = frames.LOG_HEADER_BYTES + committed * frames.FRAME_BYTES
    if start >= end:
        return
    descriptor = os.open(log, os.O_RDWR)
    try:
        for offset in range(start, end, PIECE_BYTES):
            piece = os.pread(descriptor, min(PIECE_BYTES, end - offset), offset)
            os.pwrite(descriptor, piece, offset)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
