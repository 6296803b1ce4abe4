"""Files that a client which is alone removes, and a visitor that comes meanwhile.

Such a removal may be told by the ring only (docs/decisions/0031-removals-without-a-call.md). What was removed
before a visitor looks, it must not find. One greenlet of a client at a time.
"""

from __future__ import annotations

import os
import random

from tests.sim.cluster import World
from tests.twins import LibraryPlace
from wire.errors import NotFound, QuorumfsError

FILES = 6
SLOT = 22
MOST_LOOKS = 7
"""A second apart: a client that is alone is told so after three."""
KILLS = 0.3
"""So often the metadata server is killed at once."""
FAULTS_SECONDS = 10.0
"""So long there are faults in any life."""


class Removals:
    """The files of one visit."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._losses = world, world.power_losses
        self._names = [f"{name}-{k}" for k in range(FILES)]
        self._made: list[str] = []
        self.gone: list[str] = []
        """What was removed for certain."""

    def make(self, place: LibraryPlace) -> None:
        """Make the files."""
        for name in self._names:
            try:
                place.open(SLOT, name, os.O_CREAT | os.O_RDWR)
                place.pwrite(SLOT, 0, name.encode())
                place.close(SLOT)
                self._made.append(name)
            except (QuorumfsError, OSError) as error:
                self._world.note("failed", f"{name}: {type(error).__name__}: {error}")
                place.slots.pop(SLOT, None)

    def remove(self, place: LibraryPlace, rng: random.Random, most: int) -> None:
        """Remove some of what was made."""
        for _ in range(min(most, len(self._made))):
            name = self._made.pop()
            self._world.scheduler.sleep(rng.random() * rng.choice([0.01, 1.0]))
            try:
                place.unlink(name)
                self.gone.append(name)
            except (QuorumfsError, OSError) as error:
                self._world.note("failed", f"{name} is removed: {type(error).__name__}: {error}")

    def judge(self, place: LibraryPlace) -> None:
        """Look, as a visitor, for what was removed by now. Raises QuorumfsError."""
        for name in list(self.gone):
            try:
                place.filesystem.names.resolve(name.encode(), fresh=True)
            except NotFound:
                continue
            if self._losses == self._world.power_losses:
                self._world.problem(f"{name} was removed, and a visitor finds it")


def clear_out(world: World, place: LibraryPlace, name: str, rng: random.Random) -> None:
    """Make files, remove them once it is alone, or after a while, and ask the server for them."""
    removals = Removals(world, name)
    try:
        removals.make(place)
        looks = MOST_LOOKS
        while looks and not place.filesystem._grant.era():
            looks -= 1
            world.scheduler.sleep(1.0)
        for _ in range(FILES // 2):
            removals.remove(place, rng, 2)
            if rng.random() < KILLS and world.loop.now < FAULTS_SECONDS and world.alive("meta"):
                world.kill("meta")
                world.start("meta")
            if rng.random() < 0.5:
                removals.judge(place)
    except QuorumfsError as error:
        world.note("failed", f"{name} are cleared out: {type(error).__name__}: {error}")
