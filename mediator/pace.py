"""Pacing work to a byte rate. `next_start` is pure; `Pace` waits on one event loop."""

from __future__ import annotations

import asyncio
import time


def next_start(now: float, free_at: float, size: int, bytes_per_second: int) -> tuple[float, float]:
    """Return when work on `size` bytes may begin, and when the work after it may.

    Args:
        now: the time, in seconds.
        free_at: when the work before has used up its share.
        size: in bytes.
        bytes_per_second: the rate; 0 bounds nothing.
    """
    if not bytes_per_second:
        return now, now
    begin = max(now, free_at)
    return begin, begin + size / bytes_per_second


class Pace:
    """Lets work begin no faster than a rate."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def wait(self, size: int) -> None:
        """Wait until `size` more bytes may be moved."""
        now = time.monotonic()
        begin, self._free_at = next_start(now, self._free_at, size, self.bytes_per_second)
        if begin > now:
            await asyncio.sleep(begin - now)
