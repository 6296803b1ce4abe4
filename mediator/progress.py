"""How far the refill of one server is, how fast it works, and how long what is left will take.

Pure: times come in from outside, and nothing is moved here. Not thread-safe; one event loop.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WINDOW_SECONDS = 10.0
"""The rate is that of the newest so much working time."""
LEAST_BLOCKS = 8
"""The rate is that of so many blocks at least, however long they took."""
LEAST_SECONDS = 1.0
"""What is left is not estimated before so much working time: the first blocks are no measure."""
LEAST_SPREAD = 0.2
"""By so much of their time steps must differ, by blocks and by bytes, to tell what costs how much."""
STEP_SECONDS = 0.5
"""Points of the window are so far apart, so that few are kept."""


class Point(NamedTuple):
    """What had been done after so much working time."""

    seconds: float
    blocks: int
    bytes: int


class Rate(NamedTuple):
    """Blocks and bytes a second; zeros while nothing is known."""

    blocks: float
    bytes: float
    share: float | None = None
    """Which share of the time went with blocks, not with bytes; None if that cannot be told."""

    def seconds_for(self, blocks: int, size: int) -> float | None:
        """Return how long so many blocks of `size` bytes take; None if nothing is known.

        Some of the cost goes with blocks and some with bytes, so that the truth lies between what either
        rate says. Where it is not known how much, their geometric mean is wrong by the root of what these
        differ by, at most.
        """
        if not blocks:
            return 0.0
        if not self.blocks:
            return None
        by_blocks = blocks / self.blocks
        if not (self.bytes and size):
            return by_blocks
        by_bytes = size / self.bytes
        if self.share is None:
            return math.sqrt(by_blocks * by_bytes)
        return self.share * by_blocks + (1 - self.share) * by_bytes


def blocks_share(steps: Sequence[Point]) -> float | None:
    """Return which share of the time of some steps went with blocks, the rest with bytes: by least squares.

    None if the blocks of all steps were too much alike to tell.
    """
    seconds, blocks, size = (sum(column) for column in zip(*steps, strict=True)) if steps else (0.0, 0, 0)
    if not (seconds and blocks and size):
        return None
    told = spread = 0.0
    for step in steps:
        by_blocks, by_bytes = seconds * step.blocks / blocks, seconds * step.bytes / size
        told += (by_blocks - by_bytes) * (step.seconds - by_bytes)
        spread += (by_blocks - by_bytes) ** 2
    if spread < LEAST_SPREAD**2 * sum(step.seconds**2 for step in steps):
        return None
    return min(1.0, max(0.0, told / spread))


class WorkClock:
    """The rate of recent work. Only time between `begin` and `end` counts: no pause, no looking around."""

    def __init__(self) -> None:
        self._worked = 0.0
        self._since: float | None = None
        self._done = Point(0.0, 0, 0)
        self._points = deque([self._done])

    def begin(self, now: float) -> None:
        """Work begins, or goes on."""
        self._since = now

    def end(self, now: float) -> None:
        """Work ends, or pauses."""
        self._worked, self._since = self._seconds(now), None

    def done(self, now: float, size: int) -> None:
        """One block of `size` bytes is done."""
        seconds = self._seconds(now)
        self._done = Point(seconds, self._done.blocks + 1, self._done.bytes + size)
        if seconds - self._points[-1].seconds >= STEP_SECONDS:
            self._points.append(self._done)
        while len(self._points) > 1 and self._is_old(self._points[1], seconds):
            self._points.popleft()

    def has_begun(self, now: float) -> bool:
        """Tell whether work has gone on for long enough to judge by."""
        return self._seconds(now) >= LEAST_SECONDS

    def rate(self, now: float) -> Rate:
        """Return the rate; it falls while work goes on and nothing gets done."""
        seconds = self._seconds(now)
        start = next((p for p in reversed(self._points) if self._is_old(p, seconds)), self._points[0])
        lasted = seconds - start.seconds
        if lasted <= 0:
            return Rate(0.0, 0.0)
        points = [*(point for point in self._points if point.seconds >= start.seconds), self._done]
        return Rate(
            (self._done.blocks - start.blocks) / lasted,
            (self._done.bytes - start.bytes) / lasted,
            blocks_share([_step(*pair) for pair in itertools.pairwise(points)]),
        )

    def _seconds(self, now: float) -> float:
        return self._worked + (0.0 if self._since is None else now - self._since)

    def _is_old(self, point: Point, seconds: float) -> bool:
        """Tell whether the window may begin at a point."""
        return seconds - point.seconds >= WINDOW_SECONDS and self._done.blocks - point.blocks >= LEAST_BLOCKS


def _step(before: Point, after: Point) -> Point:
    return Point(after.seconds - before.seconds, after.blocks - before.blocks, after.bytes - before.bytes)


@dataclass
class RefillProgress:
    """How far one server's refill is. Totals are what was found to lack, so that the ETA is honest."""

    server: int
    begun: float
    most_bytes_per_second: float = 0.0
    """It is not let go faster than this; 0: as fast as it can."""
    running: bool = True
    ended: float = 0.0
    passes: int = 0
    comparing: bool = False
    compared: int = 0
    blocks_total: int = 0
    blocks_done: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    failed: int = 0
    deleted: int = 0
    error: str = ""
    work: WorkClock = field(default_factory=WorkClock)

    def found(self, blocks: int, size: int) -> None:
        """So many blocks, of `size` bytes together, are left to do."""
        self.blocks_total = self.blocks_done + blocks
        self.bytes_total = self.bytes_done + size

    def was_there(self, size: int) -> None:
        """A block of `size` bytes did not lack after all: less is left, but no work was done."""
        self.blocks_done += 1
        self.bytes_done += size

    def filled(self, now: float, size: int) -> None:
        """A block of `size` bytes was filled."""
        self.was_there(size)
        self.work.done(now, size)

    def as_data(self, now: float) -> dict[str, Any]:
        """Return the progress as plain data, with the rate and the time left.

        `eta_seconds` is None while it is not known what is left, or not for long enough how fast it goes.
        """
        rate = self.work.rate(now)
        blocks_left = max(self.blocks_total - self.blocks_done, 0)
        bytes_left = max(self.bytes_total - self.bytes_done, 0)
        eta_seconds = rate.seconds_for(blocks_left, bytes_left)
        if eta_seconds is not None and self.most_bytes_per_second:
            eta_seconds = max(eta_seconds, bytes_left / self.most_bytes_per_second)
        begun = self.work.has_begun(now) or not blocks_left
        unknown = self.running and (self.comparing or not self.blocks_total or not begun)
        stopped = not self.running and blocks_left
        return {
            "server": self.server,
            "state": "running" if self.running else ("failed" if self.failed or self.error else "done"),
            "passes": self.passes,
            "comparing": self.comparing,
            "compared": self.compared,
            "done": self.blocks_done,
            "total": self.blocks_total,
            "blocks_left": blocks_left,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "bytes_left": bytes_left,
            "failed": self.failed,
            "deleted": self.deleted,
            "error": self.error,
            "elapsed_seconds": max((self.ended or now) - self.begun, 1e-3),
            "bytes_per_second": rate.bytes,
            "eta_seconds": None if unknown or stopped else eta_seconds,
        }
