"""Files that the kernel has had made shorter, and may still take to be as long as before.

It fills up with zeros what a read of its pages lacks, and takes that to be the file's as long as it does not
know the new end: from when the file is shorter here until it has taken in the answer to its ftruncate(2).
Such a read is interrupted, as signal(7) allows: who calls it again gets the new bytes.

A kernel that knows the end asks for no page beyond it. So after the answer only a read that does so is
interrupted, and a program that truncates and reads on by itself never is. A read of the page with the end
tells nothing: its answer waits a moment, so that the thread that made the file shorter comes first.

No I/O. Safe in any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fusefs.files import PAGE_BYTES

TAKEN_IN_SECONDS = 1.0
"""The kernel has certainly taken in an answer after so long: the thread that waits for it has run."""
SETTLING_SECONDS = 0.003
"""It mostly has after so long."""
WAIT_SECONDS = 0.02
"""A read waits so long at most before it is interrupted, so that who calls it again does not spin."""


class Shortenings:
    """Which inodes are being made shorter, and which have just been."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way: dict[int, int] = {}
        self._answered: dict[int, float] = {}

    @contextmanager
    def shortening(self, ino: int) -> Iterator[None]:
        """Within, the inode may become shorter; when it is left, the kernel has its answer."""
        with self._changed:
            self._under_way[ino] = self._under_way.get(ino, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                now = time.monotonic()
                self._answered.pop(ino, None)
                self._answered[ino] = now + TAKEN_IN_SECONDS
                while (oldest := next(iter(self._answered))) and self._answered[oldest] <= now:
                    del self._answered[oldest]
                self._under_way[ino] -= 1
                if not self._under_way[ino]:
                    del self._under_way[ino]
                self._changed.notify_all()

    def misleads(self, ino: int, offset: int, size: int, length: int) -> bool:
        """Tell whether the kernel may take for the file's what it adds to the answer to a read of its pages.

        Args:
            ino: of which inode.
            offset, size: which bytes it has asked for.
            length: so many it would get: fewer than `size`, since the file ends there.
        """
        if ino in self._under_way:
            with self._changed:
                self._changed.wait_for(lambda: ino not in self._under_way, WAIT_SECONDS)
            return True
        left = self._answered.get(ino, 0.0) - time.monotonic()
        if left < 0.0:
            return False
        last_page_end = -(-(offset + length) // PAGE_BYTES) * PAGE_BYTES
        if offset + size > last_page_end:
            return True
        if (settling := left - TAKEN_IN_SECONDS + SETTLING_SECONDS) > 0.0:
            time.sleep(settling)
        return False
