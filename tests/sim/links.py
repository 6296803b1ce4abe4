"""A client with a file of two names: both lead to the same bytes, and it lives until the last one is removed.

It begins a new file each time, so that a call that failed leaves nothing to be known. One greenlet at a time.
"""

from __future__ import annotations

import os
import random
from typing import Any

from tests.sim.handles import MOST_BYTES, opened, remove_named, replace_file
from tests.twins import LibraryPlace
from wire.errors import AlreadyExists, NotFound, QuorumfsError

NAMED = "link-"


class Links:
    """One client's linked files."""

    def __init__(self, world: Any, home: str, rng: random.Random) -> None:
        self.world, self.home, self.rng = world, home, rng
        self._turn = 0

    def use(self, place: LibraryPlace) -> None:
        """Make a file, link it, change it by either name, rename one, remove both."""
        self._turn += 1
        session = place.filesystem._namespace._session
        before = session.number, self.world.power_losses
        names = [f"{self.home}/{NAMED}{self._turn}-{number}" for number in range(3)]
        try:
            self._go(place, names.copy())
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.home} links: {type(error).__name__}: {error}")
            if before == (session.number, self.world.power_losses) and isinstance(
                error, NotFound | AlreadyExists | FileNotFoundError | FileExistsError
            ):
                self.world.problem(f"{self.home}: of its own new links: {type(error).__name__}: {error}")

    def remove_left(self, place: LibraryPlace, homes: list[str]) -> None:
        """Remove what is left of failed calls, killed clients, and removals that a power loss undid."""
        remove_named(place, homes, NAMED)

    def _go(self, place: LibraryPlace, names: list[str]) -> None:
        losses = self.world.power_losses
        content = self._write(place, names[0])
        place.link(names[0], names[1])
        for _ in range(self.rng.randrange(3)):
            if self.rng.random() < 0.5:
                names[:2] = names[1::-1]
            content = self._write(place, names[0])
            self._expect(place, names[1], content, 2, losses)
        if self.rng.random() < 0.5:
            place.rename(names[1], names[2], 0)
            names[1] = names[2]
            self._expect(place, names[1], content, 2, losses)
        place.unlink(names[0])
        self._expect(place, names[1], content, 1, losses)
        place.unlink(names[1])

    def _write(self, place: LibraryPlace, name: str) -> bytes:
        content = b"<%d>" % self.rng.randrange(1 << 30) * self.rng.randrange(1, 500)
        replace_file(place, 8, name, content, sync=self.world.may_lose_all_power)
        return content

    def _expect(self, place: LibraryPlace, name: str, content: bytes, links: int, losses: int) -> None:
        with opened(place, 8, name, os.O_RDONLY):
            seen = place.pread(8, 0, MOST_BYTES)
        count = place.lstat(name)["nlink"]
        if (seen, count) != (content, links) and losses == self.world.power_losses:
            self.world.problem(
                f"{name}: {count} names of {seen[:20]!r}, {len(seen)} bytes; "
                f"it must have {links} of {content[:20]!r}, {len(content)} bytes"
            )
