"""A client that goes through small files in the order of their listing, and removes one that it has open.

Most of them are fetched ahead, and a client that is alone opens them without a call: it reads what it last
wrote all the same, and what it has open lives until its last close, also over restarts of the metadata
server. One greenlet at a time.
"""

from __future__ import annotations

import os
import random
from typing import Any

from fusefs.xattrs import DROP_CACHES
from tests.sim.handles import MOST_BYTES, opened, replace_file
from tests.twins import LibraryPlace
from wire.errors import QuorumfsError, StaleFile
from wire.messages import ROOT_INODE

FILES = 10
MOST_LOOKS = 7
"""A second apart: a client that is alone is told so after three."""


class Neighbours:
    """One client's directories of neighbours; it begins a new one whenever it cannot know what is in one."""

    def __init__(self, world: Any, home: str, rng: random.Random) -> None:
        self.world, self.home, self.rng = world, home, rng
        self._turn = 0
        self.is_alone = False
        """Whether there is no other client."""
        self._contents: dict[str, bytes] = {}
        self._known_for: tuple[Any, int] | None = None
        self._losses = 0
        """How many power losses there had been when it began: another may take what it writes, unsynced."""

    def go_through(self, place: LibraryPlace) -> None:
        """Change a file, list the directory, read some in order, and use the next one without a name."""
        known_for = place.filesystem, self._losses = place.filesystem, self.world.power_losses
        session = place.filesystem._namespace._session
        number = session.number
        try:
            if self._known_for != known_for or len(self._contents) < FILES // 2:
                self._begin(place)
            self._write(place, self.rng.choice(sorted(self._contents)))
            self._await_grant(place)
            self._go(place)
            self._known_for = known_for
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.home} neighbours: {type(error).__name__}: {error}")
            self._known_for = None
            lives = session.number == number and self.world.loop.time() < session._alive_until
            if isinstance(error, StaleFile) and lives and self.world.power_losses == known_for[1]:
                self.world.problem(f"{self.home}: a file that is open is gone: {error}")

    def _await_grant(self, place: LibraryPlace) -> None:
        """Wait for a while, if it is the only client, until it is told so."""
        looks = self.rng.randrange(MOST_LOOKS) if self.is_alone else 0
        while looks and not place.filesystem._grant.era():
            looks -= 1
            self.world.scheduler.sleep(1.0)

    def _begin(self, place: LibraryPlace) -> None:
        self._turn += 1
        self._contents.clear()
        place.mkdir(self._directory)
        for number in range(FILES):
            self._write(place, f"{self._directory}/{number}")

    @property
    def _directory(self) -> str:
        return f"{self.home}/n{self._turn}"

    def _write(self, place: LibraryPlace, path: str) -> None:
        content = b"<%d>" % self.rng.randrange(1 << 30) * self.rng.randrange(1, 1000)
        replace_file(place, 7, path, content, sync=self.world.may_lose_all_power)
        self._contents[path] = content

    def _go(self, place: LibraryPlace) -> None:
        filesystem = place.filesystem
        ino = filesystem.names.resolve(self._directory.encode()).ino
        filesystem.directories.read(filesystem.directories.open(ino), restart=False)
        paths = sorted(self._contents)
        last = paths[self.rng.randrange(3, len(paths))]
        for index, path in enumerate(paths[: paths.index(last)], 1):
            self._read(place, path)
            if self.rng.random() < 0.3:  # it may have been fetched ahead
                self._write(place, self.rng.choice(paths[index:]))
        self._read(place, last, removes=True)

    def _read(self, place: LibraryPlace, path: str, removes: bool = False) -> None:
        with opened(place, 7, path, os.O_RDONLY):
            expected = self._contents[path]
            if removes:
                del self._contents[path]
                place.unlink(path)
                place.filesystem.xattrs.set(ROOT_INODE, DROP_CACHES, b"", 0)
                self.world.scheduler.sleep(self.rng.random() * self.rng.choice([0.0, 1.0, 10.0]))
            seen = place.pread(7, 0, MOST_BYTES)
        if seen != expected and self._losses == self.world.power_losses:
            self.world.problem(f"{path}: read {seen[:20]!r}, not {expected[:20]!r}")
