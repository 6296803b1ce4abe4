"""How far the refill of one server is, how fast it works, and how long what is left will take.

Pure: times come in from outside, and nothing is moved here. Not thread-safe; one event loop.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mediator.estimate import STEADY, Costs, Eta, Point, Rate, Span, add, tell

WINDOW_SECONDS = 10.0
"""The rate is that of the newest so much working time."""
LEAST_BLOCKS = 16
"""The rate is that of so many blocks at least, however long they took: several are always on their way."""
WARM_SECONDS = 1.0
"""So much of the first working time is no measure: the server has just been started."""
LEAST_SECONDS = 1.0
"""What is left is not estimated before so much working time after that."""
STEP_SECONDS = 0.25
"""Points of the window are so far apart, so that few are kept."""
PIECE_SECONDS = 1.0
PIECE_BLOCKS = 8
PIECES = 60
"""How steady the work is, is seen in the newest so many pieces, so long and so large at least."""
LOOK_THROUGH_SECONDS = 50e-6
"""A comparison takes no longer for each block, while none was measured."""


class WorkClock:
    """The rate of recent work. Only time between `begin` and `end` counts: no pause, no looking around.

    What the work tells of costs is noted in `costs`, which may know something from before.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._worked = 0.0
        self._since: float | None = None
        self._done = Point(0.0, 0, 0)
        self._points = deque([self._done])
        self._piece_start = self._done
        self._pieces: deque[Point] = deque(maxlen=PIECES)

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
        if seconds < WARM_SECONDS:
            return
        if self._points[0].seconds < WARM_SECONDS:
            self._points = deque([self._done])
            self._piece_start = self._done
        elif seconds - self._points[-1].seconds >= STEP_SECONDS:
            self._costs.learn(_step(self._points[-1], self._done))
            self._points.append(self._done)
        piece = _step(self._piece_start, self._done)
        if piece.seconds >= PIECE_SECONDS and piece.blocks >= PIECE_BLOCKS:
            self._pieces.append(piece)
            self._piece_start = self._done
        while len(self._points) > 1 and self._is_old(self._points[1], seconds):
            self._points.popleft()

    def rate(self, now: float) -> Rate:
        """Return the rate; it falls while work goes on and nothing gets done."""
        done = self._newest(now)
        if done.seconds <= 0:
            return Rate(0.0, 0.0)
        return Rate(done.blocks / done.seconds, done.bytes / done.seconds)

    def span(self, now: float, blocks: int, size: int) -> Span | None:
        """Return how long so many blocks of `size` bytes take; None if that cannot be judged yet."""
        done = self._newest(now)
        is_warm = self._points[0].seconds >= WARM_SECONDS
        if blocks and not (is_warm and done.seconds >= LEAST_SECONDS and done.blocks >= LEAST_BLOCKS):
            return None
        return self._costs.span(self.rate(now), self._pieces, blocks, size)

    def _newest(self, now: float) -> Point:
        """Return what was done in the window of the rate, which ends now."""
        seconds = self._seconds(now)
        start = next((p for p in reversed(self._points) if self._is_old(p, seconds)), self._points[0])
        return _step(start, self._done._replace(seconds=seconds))

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
    refused: int = 0
    """So many blocks in a row the server did not take, in this pass."""
    deleted: int = 0
    error: str = ""
    to_compare: int = 0
    """The comparison under way goes through so many blocks, and has gone through so many:"""
    gone_through: int = 0
    comparisons_left: int = 0
    """So many comparisons are still to come before the refill ends, as far as is known."""
    comparison_seconds: float | None = None
    """How long one took; None if that is not known."""
    _comparing_since: float = 0.0
    work: WorkClock = field(default_factory=lambda: WorkClock(Costs()))

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

    def begin_comparison(self, blocks: int, now: float) -> None:
        """What the server has is compared with the blocks that it should have, so many."""
        self.comparing, self.to_compare, self.gone_through = True, blocks, 0
        self.compared += 1
        self._comparing_since = now

    def end_comparison(self, now: float) -> None:
        """A comparison has gone through everything."""
        self.comparing = False
        self.comparison_seconds = now - self._comparing_since

    def eta(self, now: float) -> Eta:
        """Return what can be told of the time left until the refill ends.

        Nothing while it is found out what lacks, before work has gone on for long enough to judge by, and
        while most of what is left could not be filled.
        """
        blocks_left, bytes_left = self._left()
        if not self.running:
            return Eta() if blocks_left else Eta(0.0, 0.0, 0.0)
        if self.comparing or not self.blocks_total or self.failed > blocks_left / 2:
            return Eta()
        filling = self.work.span(now, blocks_left, bytes_left)
        if filling is None:
            return Eta()
        if self.most_bytes_per_second:
            allowed = bytes_left / self.most_bytes_per_second
            # What is on its way may go already: that is no longer held back.
            floors = Span(allowed, allowed / STEADY, allowed)
            filling = Span(*map(max, filling, floors))
        return tell(add(filling, self._checking()))

    def _checking(self) -> Span:
        """Return how long the comparisons take that are still to come."""
        if self.comparison_seconds is not None:
            seconds = self.comparisons_left * self.comparison_seconds
            return Span(seconds, seconds / STEADY, seconds * STEADY)
        most = self.comparisons_left * self.blocks_total * LOOK_THROUGH_SECONDS
        return Span(most / 2, 0.0, most)

    def _left(self) -> tuple[int, int]:
        return max(self.blocks_total - self.blocks_done, 0), max(self.bytes_total - self.bytes_done, 0)

    def as_data(self, now: float) -> dict[str, Any]:
        """Return the progress as plain data, with the rate and the time left.

        `eta_seconds` is None unless it can be told so that it is right within a factor of two; what can be
        told lies between `eta_least_seconds` and `eta_most_seconds`, None if nothing is known.
        """
        blocks_left, bytes_left = self._left()
        eta = self.eta(now)
        return {
            "server": self.server,
            "state": "running" if self.running else ("failed" if self.failed or self.error else "done"),
            "passes": self.passes,
            "comparing": self.comparing,
            "compared": self.compared,
            "to_compare": self.to_compare,
            "gone_through": self.gone_through,
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
            "bytes_per_second": self.work.rate(now).bytes,
            "eta_seconds": eta.seconds,
            "eta_least_seconds": eta.least,
            # JSON has no infinity.
            "eta_most_seconds": None if eta.most == math.inf else eta.most,
        }
