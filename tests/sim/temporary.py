"""A client with a temporary file: its name goes as soon as it is open, and it lives until it is closed.

It begins a new file each time, so that a call that failed leaves nothing to be known. One greenlet at a time.
"""

from __future__ import annotations

import os
import random
from typing import Any

from tests.sim.handles import MOST_BYTES, opened, remove_named
from tests.twins import LibraryPlace
from wire.errors import AlreadyExists, NotFound, QuorumfsError, StaleFile

NAMED = "temporary-"
SLOT = 8
IMPOSSIBLE = (StaleFile, NotFound, AlreadyExists, FileNotFoundError, FileExistsError)


class Temporary:
    """One client's temporary files."""

    def __init__(self, world: Any, home: str, rng: random.Random) -> None:
        self.world, self.home, self.rng = world, home, rng
        self._turn = 0

    def use(self, place: LibraryPlace) -> None:
        """Make a file, remove its name, and go on to write and read it."""
        self._turn += 1
        before = self._since(place)
        try:
            self._go(place, f"{self.home}/{NAMED}{self._turn}", before)
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.home} temporary: {type(error).__name__}: {error}")
            if before == self._since(place) and isinstance(error, IMPOSSIBLE):
                self.world.problem(f"{self.home}: of its own open file: {type(error).__name__}: {error}")

    def remove_left(self, place: LibraryPlace, homes: list[str]) -> None:
        """Remove what is left of failed calls, killed clients, and removals that a power loss undid."""
        remove_named(place, homes, NAMED)

    def _since(self, place: LibraryPlace) -> tuple[int, int, int]:
        """Return what ends the lives of open files when it changes."""
        session = place.filesystem._namespace._session
        return session.number, self.world.power_losses, self.world.put_backs.count

    def _go(self, place: LibraryPlace, name: str, before: tuple[int, int, int]) -> None:
        expected = b""
        with opened(place, SLOT, name, os.O_CREAT | os.O_EXCL | os.O_RDWR):
            if self.rng.random() < 0.5:
                expected = self._write(place, expected)
            place.unlink(name)
            for _ in range(self.rng.randrange(1, 4)):
                self.world.scheduler.sleep(self.rng.random() * self.rng.choice([0.02, 2.0]))
                if self.rng.random() < 0.5:
                    expected = self._write(place, expected)
                if self.rng.random() < 0.3:
                    place.fsync(SLOT)
                place.fstat(SLOT)
                seen = place.pread(SLOT, 0, MOST_BYTES)
                if (error := place.slots[SLOT].error) is not None:
                    raise error  # what waited could not be committed: the next write or fsync tells
                if seen != expected and before == self._since(place):
                    self.world.problem(f"{name}, open without a name: {len(seen)} bytes, not {len(expected)}")

    def _write(self, place: LibraryPlace, content: bytes) -> bytes:
        data = b"<%d>" % self.rng.randrange(1 << 30) * self.rng.randrange(1, 500)
        place.pwrite(SLOT, len(content), data)
        return content + data
