"""How a program goes through the small files of a directory, and which of them it will open next.

Pure: no I/O, no clock, no lock. What it returns is a guess: nothing may depend on its being right.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

from wire.messages import SMALL_BLOCK_BYTES, SMALL_FILES_AT_ONCE, Entry

RUN_OPENS = 3
"""So many neighbours opened one after the other are a run: the next ones will follow."""
MOST_SKIPPED = 2
"""A run goes on if so many files are left out."""
MOST_DISORDER = 16
"""A file so far back in the run was opened by another of several threads, or again: the run goes on."""
FIRST_WINDOW = 8
LEAST_WINDOW = 4
MOST_WINDOW = SMALL_FILES_AT_ONCE


class Listing:
    """The small files of a directory in the order of its listing, and the run of opens through them.

    Args:
        entries: what the listing told.
        kept_seconds: so long is kept what was fetched ahead: what is opened in half of it may be asked for.
    """

    def __init__(self, entries: Sequence[Entry], kept_seconds: float) -> None:
        small = [attributes for _, attributes in entries if _is_small(attributes.mode, attributes.size)]
        self._inodes = [attributes.ino for attributes in small]
        self._sizes = [attributes.size for attributes in small]
        self._index = {ino: index for index, ino in enumerate(self._inodes)}
        self._kept_seconds = kept_seconds
        self._begin(-1, 0.0)

    def _begin(self, index: int, now: float) -> None:
        """Begin a run at a file."""
        self._first = self._position = index
        self._begun = self._moved = now
        self._opens, self._window, self._asked_to = 1, 0, index + 1

    def __len__(self) -> int:
        return len(self._inodes)

    def __contains__(self, ino: int) -> bool:
        return ino in self._index

    def opened(self, ino: int, now: float, is_here: bool, most_bytes: int) -> list[int]:
        """Note that one of the files was opened; return the inodes to be fetched ahead now.

        Args:
            ino: the file.
            now: seconds of any clock.
            is_here: whether it was fetched ahead, or is being fetched.
            most_bytes: how much may be asked for; with 0 the open is only noted.
        """
        index = self._index[ino]
        if not self._goes_on(index, now) or (self._position < index < self._asked_to and not is_here):
            self._begin(index, now)
            return []
        if index <= self._position:
            return []
        self._position, self._moved = index, now
        self._opens += 1
        if self._opens < RUN_OPENS or self._asked_to - index - 1 > self._window // 2:
            return []
        return self._next(now, most_bytes) if most_bytes else []

    def _goes_on(self, index: int, now: float) -> bool:
        if now - self._moved > self._kept_seconds or self._first < 0:
            return False
        ahead = index - self._position
        return -MOST_DISORDER <= ahead <= MOST_SKIPPED + 1 and index >= self._first

    def _next(self, now: float, most_bytes: int) -> list[int]:
        """Return the files of the next window, and move on behind them."""
        start = max(self._asked_to, self._position + 1)
        seconds_each = (now - self._begun) / (self._opens - 1)
        window = min(max(FIRST_WINDOW, 2 * self._window), MOST_WINDOW)
        if seconds_each > 0:
            window = min(window, int(self._kept_seconds / 2 / seconds_each))
        if window < LEAST_WINDOW:
            return []
        self._window, end, room = window, start, most_bytes
        while end < min(start + window, len(self._inodes)) and self._sizes[end] <= room:
            room -= self._sizes[end]
            end += 1
        self._asked_to = end
        return self._inodes[start:end]


def _is_small(mode: int, size: int) -> bool:
    return stat.S_ISREG(mode) and 0 < size <= SMALL_BLOCK_BYTES
