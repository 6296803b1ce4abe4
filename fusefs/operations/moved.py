"""Directories that another mount has moved: the kernel is to forget the names that they had.

It knows a directory by one name. When it finds it under another one, it moves what it knows, but not during
rename(2), which looks its directory up while it holds the lock that this needs: it finds ESTALE then, tries
once more, and says ESTALE. So the old name is dropped as soon as the new one is asked for. Must not wait for
long: the kernel may hold the old place locked until it is answered. Safe in any thread.
Sources: fs/namei.c (renameat2) and fs/dcache.c (d_splice_alias) of Linux 6.18.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

MOST_PLACES = 16384
"""Of so many directories the places are known; others were asked for longer ago."""
FORGET_SECONDS = 0.1
"""Mostly it takes 0.1 ms. It cannot end before the answer if the kernel has locked the old place, too; then
the kernel's second try comes after it."""

Place = tuple[int, bytes]
"""A directory's inode number, and a name in it."""
_NOTHING = threading.Event()
_NOTHING.set()


class MovedDirectories:
    """The place of each directory that the kernel knows, as far as it was told one by one.

    Args:
        forget: has the kernel forget a name, by another thread; returns what is set when it has.

    Attributes:
        pass_on: is called before a wait.
    """

    def __init__(self, forget: Callable[[int, bytes], threading.Event]) -> None:
        self._forget = forget
        self.pass_on: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._places: OrderedDict[int, Place] = OrderedDict()
        self._directories: dict[Place, int] = {}
        """The same the other way round."""
        self._forgetting: dict[int, threading.Event] = {}

    def found(self, ino: int, parent: int, name: bytes) -> None:
        """Note where the kernel is about to be told that a directory is; have it forget where it was."""
        with self._lock:
            before = self._places.get(ino)
            self._put(ino, (parent, name))
            if before is not None and before != (parent, name):
                forgotten = self._forgetting[ino] = self._forget(*before)
            else:  # waited for once more at most, which the second try needs
                forgotten = self._forgetting.pop(ino, _NOTHING)
        if not forgotten.is_set():
            self.pass_on()
            forgotten.wait(FORGET_SECONDS)

    def renamed(self, place: Place, to: Place, *, exchanged: bool) -> None:
        """Note that the kernel has something renamed, and moves what it knows of it itself."""
        with self._lock:
            moved, other = self._take(place), self._take(to)
            if moved:
                self._put(moved, to)
            if other and exchanged:
                self._put(other, place)

    def _put(self, ino: int, place: Place) -> None:
        if (before := self._places.pop(ino, None)) is not None:
            del self._directories[before]
        self._take(place)
        self._places[ino] = place
        self._directories[place] = ino
        if len(self._places) > MOST_PLACES:
            oldest, left = self._places.popitem(last=False)
            del self._directories[left]
            self._forgetting.pop(oldest, None)

    def _take(self, place: Place) -> int:
        """Return the directory that was at a place, 0 if none is known, which is nowhere from now on."""
        ino = self._directories.pop(place, 0)
        if ino:
            del self._places[ino]
        return ino
