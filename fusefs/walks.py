"""How each thread of a program got where it is: the names it looked up last, and how they were answered.

The kernel asks for every name of a path, one after the other, and then opens the inode that it
arrived at. If all answers came from the server within the same system call, or from what is known in an era
that goes on (fusefs.grant), the open is right by itself; if one came from the cache otherwise, the whole walk
is asked again at the server with the open (promise P8: who opens a file after another mount's close sees it,
also when it was renamed over). Pure but for its lock; bounded; safe in any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

MOST_WALKERS = 4096
MOST_STEPS = 256


class Walk:
    """Names followed from a directory, the inode numbers found, and whose word they are.

    Attributes:
        fresh: whether each was said by the server, or is known in the era `era`.
        era: 0 if all were said by the server.
    """

    __slots__ = ("era", "fresh", "inodes", "names", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.names: list[bytes] = []
        self.inodes: list[int] = []
        self.fresh = True
        self.era = 0

    def is_right(self, era: int) -> bool:
        """Tell whether it leads there still, as far as it is known while `era` goes on (0: none does)."""
        return self.fresh and self.era in (0, era)


class Walks:
    """The last walk of each thread, by its thread id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._walks: OrderedDict[int, Walk] = OrderedDict()

    def step(self, walker: int, parent: int, name: bytes, ino: int, fresh: bool, era: int = 0) -> None:
        """Note that `walker` was told that `name` in `parent` is `ino`, by the server if `fresh`.

        `era` is the one that went on before it was looked up in what is known.
        """
        with self._lock:
            walk = self._walks.get(walker)
            if walk is None or not walk.inodes or walk.inodes[-1] != parent or len(walk.names) >= MOST_STEPS:
                walk = self._walks[walker] = Walk(parent)
            walk.names.append(name)
            walk.inodes.append(ino)
            if not fresh:
                walk.fresh = walk.fresh and era != 0 and walk.era in (0, era)
                walk.era = era
            self._walks.move_to_end(walker)
            if len(self._walks) > MOST_WALKERS:
                self._walks.popitem(last=False)

    def take(self, walker: int, ino: int) -> Walk | None:
        """Return the walk that led `walker` to `ino`, to be used once; None if it came another way."""
        with self._lock:
            walk = self._walks.pop(walker, None)
        return walk if walk is not None and walk.inodes[-1] == ino else None
