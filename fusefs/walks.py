"""How each thread of a program got where it is: the names it looked up last, and how they were answered.

The kernel asks for every name of a path, one after the other, and then has something done with the inode
that it arrived at. If all answers came from the server within the same system call, or from what is known in
an era that goes on (fusefs.grant), that is right by itself; if one came from the cache otherwise, the whole
walk is asked again at the server first (promise P8: who opens a file after another mount's close sees it,
also when it, or a directory or link on the way to it, was renamed over). Pure but for its lock and its clock;
bounded; safe in any thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_WALKERS = 4096
MOST_WALKS = 3
"""So many are kept of each thread: rename(2) has two paths."""
MOST_STEPS = 256
CALL_SECONDS = 0.5
"""Names that were looked up longer ago are of an earlier system call, mostly: the thread is there already,
by a descriptor or as its working directory, whatever the names lead to now."""
SAID = -1
"""Instead of an era: the server said so."""


class Walk:
    """Names followed from a directory, the inode numbers found, and whose word they are.

    Attributes:
        eras: in which era each was known; SAID, or 0 if nobody vouches for it.
        at: when the last name was followed.
    """

    __slots__ = ("at", "eras", "inodes", "names", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.names: list[bytes] = []
        self.inodes: list[int] = []
        self.eras: list[int] = []
        self.at = 0.0

    def is_right(self, era: int) -> bool:
        """Tell whether it leads there still, as far as it is known while `era` goes on (0: none does)."""
        return all(known == SAID or (known != 0 and known == era) for known in self.eras)

    def part_to(self, ino: int) -> Walk | None:
        """Return a copy of that part of it that led to an inode; None if it did not come there."""
        count = len(self.inodes)
        while count and self.inodes[count - 1] != ino:
            count -= 1
        if not count and self.start != ino:
            return None
        part = Walk(self.start)
        part.names, part.inodes, part.eras = self.names[:count], self.inodes[:count], self.eras[:count]
        part.at = self.at
        return part

    def confirm(self, walk: Walk) -> None:
        """Note that the server has said all of a walk, which this one may begin with."""
        count = len(walk.names)
        if (self.start, self.names[:count], self.inodes[:count]) == (walk.start, walk.names, walk.inodes):
            self.eras[:count] = [SAID] * count


class Walks:
    """The last walks of each thread, by its thread id."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._walks: OrderedDict[int, deque[Walk]] = OrderedDict()
        self._misled: OrderedDict[int, float] = OrderedDict()
        """Who walks anew, and until when that is the same system call at most."""

    def step(self, walker: int, parent: int, name: bytes, ino: int, fresh: bool, era: int = 0) -> None:
        """Note that `walker` was told that `name` in `parent` is `ino`, by the server if `fresh`.

        `era` is the one that went on before it was looked up in what is known.
        """
        with self._lock:
            walks = self._walks.setdefault(walker, deque(maxlen=MOST_WALKS))
            if walks and walks[-1].inodes[-1:] == [parent] and len(walks[-1].names) < MOST_STEPS:
                walk = walks[-1]
            else:
                walk = self._part_to(walks, parent) or Walk(parent)
                walks.append(walk)
            walk.names.append(name)
            walk.inodes.append(ino)
            walk.eras.append(SAID if fresh else era)
            walk.at = self._clock()
            self._walks.move_to_end(walker)
            if len(self._walks) > MOST_WALKERS:
                self._walks.popitem(last=False)

    def _part_to(self, walks: deque[Walk], ino: int) -> Walk | None:
        """Return how a thread came to an inode the last time, as far as it did so in this system call."""
        for walk in reversed(walks):
            if self._clock() - walk.at < CALL_SECONDS and (part := walk.part_to(ino)) is not None:
                return part if len(part.names) < MOST_STEPS else None
        return None

    def take(self, walker: int, ino: int) -> Walk | None:
        """Return the walk that led `walker` to `ino`, to be used once; None if it came another way."""
        with self._lock:
            walks = self._walks.pop(walker, None)
        return walks[-1] if walks and walks[-1].inodes[-1] == ino else None

    def ended(self, walker: int) -> None:
        """Note that the system call of `walker` is over: what its next one is about, it came to otherwise."""
        with self._lock:
            self._walks.pop(walker, None)

    def doubtful(self, walker: int, ino: int, era: int) -> Walk | None:
        """Return the walk that led `walker` (0: nobody) to `ino`, if it may lead elsewhere by now."""
        if not walker:
            return None
        with self._lock:
            walks = self._walks.get(walker)
            if not walks or all(walk.is_right(era) for walk in walks):  # as while a mount is alone
                return None
            walk = self._part_to(walks, ino)
        return None if walk is None or walk.is_right(era) else walk

    def is_known(self, walker: int, ino: int, era: int) -> bool:
        """Tell whether `walker` came to an inode by names that led there when this system call had begun."""
        with self._lock:
            walk = self._part_to(self._walks.get(walker, deque()), ino) if walker else None
        return walk is not None and bool(walk.names) and walk.is_right(era)

    def mislead(self, walker: int) -> None:
        """Note that `walker` was told that a name leads elsewhere: the kernel has it walk anew, once."""
        with self._lock:
            self._misled[walker] = self._clock() + CALL_SECONDS
            self._misled.move_to_end(walker)
            if len(self._misled) > MOST_WALKERS:
                self._misled.popitem(last=False)

    def is_misled(self, walker: int) -> bool:
        """Tell whether `walker` may be walking anew: then only the server's word will do."""
        return self._misled.get(walker, 0.0) > self._clock()

    def confirm(self, walker: int, walk: Walk) -> None:
        """Note that the server has just said all of a walk."""
        with self._lock:
            for each in self._walks.get(walker, ()):
                each.confirm(walk)
