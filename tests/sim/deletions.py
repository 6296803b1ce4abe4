"""Power losses of the metadata server in the moment in which it hears that blocks were deleted.

All data servers have deleted then what it took for garbage: if that was not durable, a file that comes back
finds nothing there. By chance a power loss hardly ever comes then, before something else makes the metadata's
log durable: clients sync little in these lives, and milestones are taken as rarely as in a real cluster. One
thread.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING

from metaserver.service import MetaService

if TYPE_CHECKING:
    from tests.sim.cluster import World

LIVES_WITH = 0.2
SYNC_PROBABILITY = 0.05
PAUSE_SECONDS = 8.0
"""From one to the next, at most."""
AWAY_SECONDS = 2.0
"""The power is back by then."""
CALM_SECONDS = 20.0
"""So long they happen by themselves, when all other faults are over: as long as a server is down, no block is
deleted everywhere."""


class Deletions:
    """Waits for such moments, in which the log has something that is not durable.

    Attributes:
        harm: whether they cost the metadata server its power.
    """

    def __init__(self, seed: int, world: World) -> None:
        self._rng = random.Random(f"deletions of {seed}")
        self._world = world
        self.harm = self._rng.random() < LIVES_WITH and not world.about_locks and not world.put_backs.happen
        self._not_before = self._rng.uniform(0.0, PAUSE_SECONDS)
        if self.harm:
            world.sync_probability, world.may_lose_all_power = SYNC_PROBABILITY, False
            world.with_shared = False
            MetaService.forget = self._watched(MetaService.forget)  # type: ignore[method-assign]

    def _watched(self, forget: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(forget)
        def told(service: MetaService, blocks: list[bytes]) -> None:
            now = self._world.loop.now
            if self.harm and now >= self._not_before and self._is_undurable():
                self._not_before = now + self._rng.uniform(0.0, PAUSE_SECONDS)
                self._lose_power()
            forget(service, blocks)

        return told

    def _is_undurable(self) -> bool:
        return any(path.endswith("-wal") for path in self._world.disks["meta"].undo)

    def _lose_power(self) -> None:
        self._world.note("fault", "meta loses its power as it hears of deletions")
        self._world.fail_in_a_write("meta", 0, "", power=True)
        self._start_later(self._rng.uniform(0.0, AWAY_SECONDS))

    def _start_later(self, away_seconds: float) -> None:
        self._world.loop.call_later(away_seconds, self._start, context=Context())

    def end(self) -> None:
        """Have some more of them, and then no more."""
        if self.harm:
            self._world.pass_time(CALM_SECONDS)
            self.harm, self._world.disks["meta"].failure = False, None
            self._start()  # where two mediators tell of the same, it goes at a later write

    def _start(self) -> None:
        if not self._world.alive("meta"):
            self._world.start("meta")
        elif self._world.disks["meta"].failure is not None:
            self._start_later(AWAY_SECONDS)  # its next write has not come yet
