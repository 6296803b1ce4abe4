"""How long servers take to send bytes and to vote, and what follows: whom to ask, and when to ask one more.

Measured are requests for bytes and for votes, each by themselves, small and large ones apart: a heartbeat or
a write says little of them. Pure: no clock, no randomness, no I/O. For use on one event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Literal

SizeClass = Literal["small", "large", "several"]
SIZE_CLASSES: tuple[SizeClass, ...] = ("small", "large", "several")
"""Short reads, longer ones, and those of several small blocks by one call."""

SMALL_BYTES = 64 * 1024
"""A read of at most so many bytes is small."""
WINDOW = 64
"""So many calls of each class tell a server's p95."""
RECENT = 5
"""So many of them, the newest, tell its median: three slow ones are enough to turn to others."""
HEDGE_SHORTEST_SECONDS = 0.02
HEDGE_LONGEST_SECONDS = 0.5
HEDGE_UNMEASURED_SECONDS = 0.05
"""The delay of a second request while nothing is measured."""
NEAR_FACTOR = 1.5
NEAR_SECONDS = 0.001
"""Servers at most this much slower than the fastest are alike: the least busy one sends the bytes."""
STAY = 64
"""So many reads go to the same server while it has nothing else to do and others are no faster: the caches of
the processor have then what this takes."""
TRY_EVERY = 32
"""One choice in so many goes to a server that is not among the fastest, to see whether it is again."""


def size_class(length: int, first_piece: int, pieces: int, piece_bytes: int) -> SizeClass:
    """Return the class of a read of pieces (0: all from the first on) of a block of `length` bytes."""
    rest = length - first_piece * piece_bytes
    wanted = min(rest, pieces * piece_bytes) if pieces else rest
    return "small" if wanted <= SMALL_BYTES else "large"


class Window:
    """How long the newest calls of one class to one server took, in seconds."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._p95: float | None = None
        self.median: float | None = None
        """Of the newest few; None if there are none."""

    def note(self, seconds: float) -> None:
        """Add a call; the oldest goes."""
        self._samples.append(seconds)
        self._recent.append(seconds)
        self.median = sorted(self._recent)[len(self._recent) // 2]
        self._p95 = None

    @property
    def p95(self) -> float | None:
        """Of all; None if there are none. It is worked out when it is asked for: of votes it never is."""
        if self._p95 is None and self._samples:
            self._p95 = sorted(self._samples)[(len(self._samples) * 95 - 1) // 100]
        return self._p95


Times = dict[SizeClass, Window]


def no_times() -> Times:
    """Return the windows of a server of which nothing is known."""
    return {size: Window() for size in SIZE_CLASSES}


def split_by_speed(medians: Mapping[int, float | None]) -> tuple[list[int], list[int]]:
    """Return the servers that are about as fast as the fastest, and the others, each in order.

    A server with None counts as the middle one of the others, so that it is tried.
    """
    known = [seconds for seconds in medians.values() if seconds is not None]
    limit = min(known, default=0.0) * NEAR_FACTOR + NEAR_SECONDS
    if len(known) == len(medians) and max(known, default=0.0) <= limit:
        return sorted(medians), []
    average = median_low(known) if known else 0.0
    near: list[int] = []
    far: list[int] = []
    for number, seconds in sorted(medians.items()):
        (near if (average if seconds is None else seconds) <= limit else far).append(number)
    return near, far


def choose_byte_server(medians: Mapping[int, float | None], busy: Mapping[int, int], turn: int) -> int:
    """Return which server sends the bytes: of those about as fast as the fastest the least busy.

    Args:
        medians: the recent time of a read by server number, in seconds, at least one (see `split_by_speed`).
        busy: how many calls each of them is at, by server number.
        turn: a number that grows by one with every choice.
    """
    near, far = split_by_speed(medians)
    if far and turn % TRY_EVERY == 0:
        return far[turn // TRY_EVERY % len(far)]
    return _least_busy_first(near, busy, turn)[0]


def _least_busy_first(servers: list[int], busy: Mapping[int, int], turn: int) -> list[int]:
    """Return them by their calls; those that are alike take turns in being first, STAY long."""
    start = turn // STAY % len(servers) if servers else 0
    return sorted([*servers[start:], *servers[:start]], key=busy.__getitem__)


def choose_voters(
    medians: Mapping[int, float | None], busy: Mapping[int, int], turn: int, wanted: int
) -> list[int]:
    """Return `wanted` servers that vote at once, or all if there are fewer: the fastest, least busy first.

    Args:
        medians: the recent time of a vote by server number, in seconds (see `split_by_speed`).
        busy: how many calls each of them is at, by server number.
        turn: a number that grows by one with every choice.
        wanted: so many votes are needed.
    """
    near, far = split_by_speed(medians)
    far.sort(key=lambda number: medians[number] or 0.0)
    return [*_least_busy_first(near, busy, turn), *far][:wanted]


def hedge_seconds(p95s: Sequence[float | None]) -> float:
    """Return after how long a second server is asked, of the servers' p95 in the class of the read.

    It is the middle one of them: a few slow servers must not make the wait for them longer.
    """
    known = [seconds for seconds in p95s if seconds is not None]
    usual = median_low(known) if known else HEDGE_UNMEASURED_SECONDS
    return min(HEDGE_LONGEST_SECONDS, max(HEDGE_SHORTEST_SECONDS, usual))
