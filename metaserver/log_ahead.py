"""What the log's file has where it is written next, read into the kernel's memory before a commit needs it.

SQLite begins the log over in place, and its frames are no multiple of the kernel's pages: to write one, the
kernel needs the rest of the pages at its ends, and where it has forgotten these, each commit waits for the
disk, some eight times. So it is asked to read them ahead: a little from where the log is written now, and
from its beginning, where it goes on when all of it is in the database. Decides nothing, changes nothing. In
the event loop's thread; each call takes some 0.1 ms.
"""

from __future__ import annotations

import os
from pathlib import Path

from metaserver import frames
from metaserver.log_mark import Durable, LogMark
from wire.read_ahead import PIECE_BYTES, advise

AHEAD_BYTES = 4 * 1024 * 1024
"""More than is written in 0.1 s by clients that wait for their calls."""
IDLE_TURNS = 10
"""Of calls at which nothing was written, so many are one."""


class LogAhead:
    """The log of one open database."""

    def __init__(self, database: Path, mark: LogMark) -> None:
        """Open the log, in which something was read or written already. Raises OSError."""
        self._mark = mark
        self._descriptor = os.open(f"{database}-wal", os.O_RDONLY)
        self._seen: Durable | None = None
        self._idle_turns = 0

    def look(self) -> None:
        """Have the kernel read ahead, if something was written since, or a while ago."""
        durable = self._mark.look()
        self._idle_turns += 1
        if durable is None or (durable == self._seen and self._idle_turns < IDLE_TURNS):
            return
        self._seen, self._idle_turns = durable, 0
        size = os.fstat(self._descriptor).st_size
        for start, length in pieces(durable.frames * frames.FRAME_BYTES, size):
            advise(self._descriptor, start, length)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def pieces(position: int, size: int) -> list[tuple[int, int]]:
    """Return what is to be read of a log that is written at `position`: (offset, bytes), none of it twice.

    Args:
        position: where it is written, in bytes.
        size: of its file; behind it nothing is read.
    """
    first = min(position, AHEAD_BYTES)
    parts = ((0, first), (position, position + AHEAD_BYTES))
    return [
        (start, min(PIECE_BYTES, end - start, size - start))
        for begin, end in parts
        for start in range(begin, min(end, size), PIECE_BYTES)
    ]
