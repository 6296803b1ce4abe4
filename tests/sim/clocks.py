"""The clocks of the simulated hosts: in some lives none shows the same, some run fast, and some are set.

What a process asks its clock for is of its own host. Clocks that run alike to within a tenth are what the
project asks for (docs/decisions/0019-a-mount-that-is-alone.md); of the date it asks nothing. One thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

WALL_CLOCK_START_SECONDS = 1_800_000_000.0
MOST_SECONDS_UP = 1e6
MOST_DRIFT = 0.045
"""The fastest clock then runs 1.094 times as fast as the slowest one: by less than a tenth of its time."""
YEAR_SECONDS = 365 * 86_400.0
DATES_OFF_SECONDS = (5.0, 3600.0, 50 * YEAR_SECONDS)
"""A date is wrong by so much at most; also by one after the other, in a life."""
STEP_MEAN_SECONDS = 8.0
KEEPER = "meta"
"""Whose date is set more often than others': only the metadata server keeps times by which it decides."""


class Clock:
    """The clocks of one host, as they show when `now` is the virtual time."""

    def __init__(self) -> None:
        self.rate = 1.0
        """So many of its seconds are one of virtual time."""
        self.origin = 0.0
        self.ahead_seconds = 0.0
        """By so much its date is wrong."""

    def monotonic(self, now: float) -> float:
        return self.origin + self.rate * now

    def moment(self, shown: float) -> float:
        """Return the virtual time when the monotonic clock shows this."""
        return (shown - self.origin) / self.rate

    def wall(self, now: float) -> float:
        return WALL_CLOCK_START_SECONDS + self.ahead_seconds + self.rate * now


class Clocks:
    """The clocks of all hosts. What is drawn for them changes nothing else of a life's drawing."""

    def __init__(self, seed: int, note: Callable[[str, str], None]) -> None:
        self._rng = random.Random(f"clocks of {seed}")
        self._note = note
        self._by_host: dict[str, Clock] = {}
        self.differ = self._rng.random() < 0.4
        """Whether they run at different rates, and show different times."""
        self.have_wrong_dates = self._rng.random() < 0.5
        self._next_step = self._rng.expovariate(1 / STEP_MEAN_SECONDS)

    def of(self, host: str) -> Clock:
        """Return the clocks of a host."""
        clock = self._by_host.get(host)
        if clock is None:
            clock = self._by_host[host] = Clock()
            if self.differ:
                clock.rate = 1.0 + self._rng.choice([-MOST_DRIFT, MOST_DRIFT])
                clock.origin = self._rng.uniform(0.0, MOST_SECONDS_UP)
            if self.have_wrong_dates:
                clock.ahead_seconds = self._wrong()
        return clock

    def _wrong(self) -> float:
        most = self._rng.choice(DATES_OFF_SECONDS)
        return self._rng.choice([0.0, self._rng.uniform(-most, most)])

    def step(self, now: float, hosts: Iterable[str]) -> None:
        """Set the date of some host, if it is time for that."""
        if not self.have_wrong_dates or now < self._next_step:
            return
        self._next_step = now + self._rng.expovariate(1 / STEP_MEAN_SECONDS)
        host = self._rng.choice([*sorted(hosts), *[KEEPER] * 5])
        clock = self.of(host)
        before, clock.ahead_seconds = clock.ahead_seconds, self._wrong()
        self._note("fault", f"the date of {host} is set: {clock.ahead_seconds - before:+.0f} s")
