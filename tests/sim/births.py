"""A file that a client which is alone has just created, and a visitor that comes before it is closed.

Such a file may be known to its own mount only (docs/decisions/0022-a-file-made-by-its-first-commit.md). A
visitor that does not find it has told others so: then its close must not succeed. What was closed is found,
with all of its bytes. One greenlet of a client at a time.
"""

from __future__ import annotations

import os
import random

from tests.sim.cluster import World
from tests.twins import LibraryPlace
from wire.errors import NotFound, QuorumfsError

SLOT = 21
WAIT_SECONDS = 30.0


class Birth:
    """One such file, of a client and its visitor.

    Attributes:
        is_over: whether its client is done with it.
    """

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        self._content = f"content of {name}".encode() * 100
        self._losses = world.power_losses
        self._created = self._closed = self.is_over = False

    def create(self, place: LibraryPlace) -> None:
        """Create and write it, and leave it open."""
        try:
            place.open(SLOT, self._name, os.O_CREAT | os.O_RDWR)
            self._created = True
            place.pwrite(SLOT, 0, self._content)
        except (QuorumfsError, OSError) as error:
            self._note_failure(error)

    def close(self, place: LibraryPlace, rng: random.Random) -> None:
        """Close it after a while."""
        if SLOT in place.slots:
            self._world.scheduler.sleep(rng.random() * rng.choice([0.5, 6.0]))
            try:
                place.close(SLOT)
                self._closed = self._created
            except (QuorumfsError, OSError) as error:
                self._note_failure(error)
        self.is_over = True

    def _note_failure(self, error: Exception) -> None:
        self._created = False  # what failed may be there or not
        self._world.note("failed", f"{self._name}: {type(error).__name__}: {error}")

    def look(self, place: LibraryPlace) -> bytes | None:
        """Return what it holds, as a visitor sees it; None if it is not there. Raises QuorumfsError."""
        filesystem = place.filesystem
        try:
            found = filesystem.names.resolve(self._name.encode(), fresh=True)
        except NotFound:
            return None
        place.slots[SLOT], _ = filesystem.files.open(found.ino, os.O_RDONLY)
        try:
            return place.pread(SLOT, 0, 2 * len(self._content))
        finally:
            place.close(SLOT)

    def judge(self, place: LibraryPlace, first: bytes | None) -> None:
        """Wait until its client is done, look again, and hold both looks against what that was told."""
        world, until = self._world, self._world.loop.now + WAIT_SECONDS
        while not self.is_over and world.loop.now < until:
            world.scheduler.sleep(0.05)
        if not self._closed:
            return
        last = self.look(place)
        if self._losses != world.power_losses:
            return
        if first is None:
            world.problem(f"{self._name} was closed, though a visitor had not found it after its creation")
        if last != self._content:
            world.problem(f"{self._name} was closed, and a visitor does not see what it holds")
