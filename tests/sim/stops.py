"""Clients that are stopped for a while, as SIGSTOP or a debugger does: time goes by, and they do nothing.

What it had asked for goes on without it; its lease ends while it believes that it has its locks. One thread.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from tests.sim.loop import Process

if TYPE_CHECKING:
    from tests.sim.cluster import World

MEAN_SECONDS = 10.0
"""From the end of one stop to the next one, on average."""
LONGEST_LEASES = 1.6


class Stops:
    """Stops one client after the other. What is drawn for it changes nothing else of a life's drawing."""

    def __init__(self, seed: int, world: World) -> None:
        self._rng = random.Random(f"stops of {seed}")
        self._world = world
        self._happen = self._rng.random() < 0.3
        self._stopped: Process | None = None
        self._due = self._rng.expovariate(1 / MEAN_SECONDS)
        self.counts: Counter[str] = Counter()
        """How often each client was stopped."""

    def step(self, names: list[str]) -> None:
        """Stop one of these clients, or let one go on, if it is time for that."""
        if not self._happen or self._world.loop.now < self._due:
            return
        if self._stopped is not None:
            self._go_on(self._stopped)
            return
        running = [process for name in names if (process := self._world.processes[name]).alive]
        if running:
            self._stop(self._rng.choice(running))

    def _stop(self, process: Process) -> None:
        seconds = self._rng.choice([1.0, 3.0, self._world.config.lease_seconds * LONGEST_LEASES])
        seconds *= self._rng.random()
        self._world.note("fault", f"{process.name} is stopped for {seconds:.1f} s")
        self._due = self._world.loop.now + seconds
        self._stopped = process
        self.counts[process.name] += 1
        process.paused = True

    def _go_on(self, process: Process) -> None:
        self._due = self._world.loop.now + self._rng.expovariate(1 / MEAN_SECONDS)
        self._stopped = None
        if process.alive and process.paused:  # nobody else has let it go on
            self._world.note("fault", f"{process.name} goes on")
            self._world.loop.go_on(process)
