"""Files that a client which is alone makes and removes, and a visitor that comes meanwhile.

Such changes may be told by the ring only (docs/decisions/0031-changes-without-a-call.md). What was removed
before a visitor looks, it must not find; what was made, it must. One greenlet of a client at a time.
"""

from __future__ import annotations

import os
import random
import stat
from contextlib import suppress

from tests.sim.cluster import World
from tests.twins import LibraryPlace
from wire.errors import NotFound, QuorumfsError
from wire.messages import AttributeChanges, Attributes

FILES = 6
SLOT, READ_SLOT = 22, 23
MODE = 0o4711
MOST_LOOKS = 7
"""A second apart: a client that is alone is told so after three."""
KILLS = 0.3
"""So often the metadata server is killed at once."""


class Told:
    """The files of one visit, each of which contains its own name."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._losses = world, world.power_losses
        self._name, self.count = name, 0
        self._made: list[str] = []
        """What is there for certain: it is taken from here before it is removed."""
        self._gone: list[str] = []
        """What was removed for certain."""

    def make(self, place: LibraryPlace, count: int = FILES) -> None:
        """Make files."""
        for _ in range(count):
            name = f"{self._name}-{self.count}"
            self.count += 1
            self._world.told.append(name)
            try:
                place.open(SLOT, name, os.O_CREAT | os.O_RDWR)
                place.pwrite(SLOT, 0, name.encode())
                made = place.slots[SLOT].inode.ino
                place.filesystem.attributes.set(made, AttributeChanges(mode=MODE))
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
                self._gone.append(name)
            except (QuorumfsError, OSError) as error:
                self._world.note("failed", f"{name} is removed: {type(error).__name__}: {error}")

    def judge(self, place: LibraryPlace) -> None:
        """Look, as a visitor, for what was removed and made by now. Raises QuorumfsError."""
        for name in list(self._gone):
            if self._find(place, name) is not None:
                self._complain(f"{name} was removed, and a visitor finds it")
        for name in list(self._made):
            found = self._find(place, name)
            is_whole = found is not None and (found.size, stat.S_IMODE(found.mode)) == (len(name), MODE)
            if not is_whole and name in self._made:
                self._complain(f"{name} was made, and a visitor finds {found}")
            content = self._read(place, name) if is_whole else b""
            if is_whole and content != name.encode() and name in self._made:
                self._complain(f"{name} was made, and a visitor reads {content!r}")

    @staticmethod
    def _find(place: LibraryPlace, name: str) -> Attributes | None:
        try:
            return place.filesystem.names.resolve(name.encode(), fresh=True)
        except NotFound:
            return None

    @staticmethod
    def _read(place: LibraryPlace, name: str) -> bytes:
        place.open(READ_SLOT, name, os.O_RDONLY)
        try:
            return bytes(place.pread(READ_SLOT, 0, 2 * len(name)))
        finally:
            place.close(READ_SLOT)

    def _complain(self, problem: str) -> None:
        if self._losses == self._world.power_losses:
            self._world.problem(problem)


def clear_out(world: World, place: LibraryPlace, name: str, rng: random.Random) -> None:
    """Make files, and once it is alone, or after a while, remove and make some; ask the server for them."""
    told = Told(world, name)
    try:
        told.make(place)
        looks = MOST_LOOKS
        while looks and not place.filesystem._grant.era():
            looks -= 1
            world.scheduler.sleep(1.0)
        for _ in range(FILES // 2):
            told.remove(place, rng, 2)
            told.make(place, rng.randrange(FILES))
            if rng.random() < KILLS and world.loop.now < world.faults_until and world.alive("meta"):
                world.kill("meta")
                world.start("meta")
            if rng.random() < 0.5:
                told.judge(place)
        told.remove(place, rng, told.count)
    except QuorumfsError as error:
        world.note("failed", f"{name} are cleared out: {type(error).__name__}: {error}")


def remove_all(world: World, place: LibraryPlace) -> None:
    """Remove what visits have left: nobody made it durable, so a loss of all power may take its bytes alone.

    Raises QuorumfsError.
    """
    for name in world.told:
        with suppress(NotFound, FileNotFoundError):
            place.unlink(name)
