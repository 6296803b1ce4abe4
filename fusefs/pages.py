"""Which of the kernel's cached pages are right, and when it is to drop them. Bounded.

What is learnt of a file comes here before anybody is told of it; dropping itself is the adapter's business
(`PageDropper`). Safe in any thread; no I/O.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Protocol

from fusefs.cache import LIFE_SECONDS, keep_newest
from fusefs.inodes import Learnt

MOST_ENTRIES = 65_536
UNSETTLED_SECONDS = 2 * LIFE_SECONDS
"""The kernel is told nothing older than a life; as long again for what is on its way to it."""


class PageDropper(Protocol):
    """Who can have the kernel forget the pages and attributes of an inode."""

    def drop_soon(self, ino: int) -> None:
        """Drop them in a while. For any thread, also while the kernel waits for some of their bytes."""

    def drop_attributes(self, ino: int) -> None:
        """Drop its attributes only, and return then. For any thread."""

    def drop_now(self, ino: int) -> None:
        """Drop them, and return then. For requests that the kernel does not lock pages for, as for a lock."""

    def await_drops(self, ino: int) -> None:
        """Return when all that were to be dropped soon have been dropped. For the same requests."""


class PageLedger:
    """Of which version the kernel's cached pages of an inode are, if they all are of one."""

    def __init__(self, most_entries: int = MOST_ENTRIES) -> None:
        self._most = most_entries
        self._lock = threading.Lock()
        self._versions: OrderedDict[int, int] = OrderedDict()
        self._dropping: OrderedDict[int, int] = OrderedDict()
        """Of which version they will be once the kernel has dropped them, as an open has told it to."""
        self._unsettled: OrderedDict[int, float] = OrderedDict()
        self._shortened: OrderedDict[int, float] = OrderedDict()
        self._empty: OrderedDict[int, None] = OrderedDict()
        """Inodes that the kernel has no pages of, but such as are to be dropped."""
        self._dropper: PageDropper | None = None

    def drop_with(self, dropper: PageDropper) -> None:
        """Use this one when pages are to be dropped while the file is open."""
        self._dropper = dropper

    def locked(self, ino: int, version: int) -> None:
        """Have the kernel read `version` from now on; it is just being told of a lock."""
        keep = self.opened(ino, version)
        if self._dropper is not None:
            (self._dropper.await_drops if keep else self._dropper.drop_now)(ino)
        if not keep:
            self.dropped(ino, version)

    def opened(self, ino: int, version: int) -> bool:
        """Tell whether the kernel may keep its pages at an open that found `version`.

        If not, it drops them before the first request by what was opened (`dropped`); until then no other
        open may keep them, as its answer may be the first that is taken in.
        """
        with self._lock:
            keep = self._versions.get(ino) == version
            if keep:
                self._versions.move_to_end(ino)
            else:
                self._versions.pop(ino, None)
                keep_newest(self._dropping, ino, version, self._most)
            return keep

    def dropped(self, ino: int, version: int) -> None:
        """Note that the kernel has dropped its pages, as it was to at an open that found `version`."""
        with self._lock:
            if self._dropping.get(ino) == version:
                del self._dropping[ino]
                keep_newest(self._versions, ino, version, self._most)

    def committed(self, ino: int, version: int) -> None:
        """Note that this mount made `version` alone: the pages written through it are right."""
        with self._lock:
            self._dropping.pop(ino, None)
            if self._versions.get(ino) == version - 1:
                self._versions[ino] = version
            else:
                self._versions.pop(ino, None)

    def created(self, ino: int) -> None:
        """Note a new inode: the kernel has nothing of it."""
        with self._lock:
            keep_newest(self._empty, ino, None, self._most)

    def filled(self, ino: int) -> None:
        """Note that the kernel may have pages from now on; with the inode's lock held."""
        if ino in self._empty:
            with self._lock:
                self._empty.pop(ino, None)

    def bypassed(self, ino: int) -> None:
        """Note a write past the kernel's pages, with the inode's lock held since it was noted.

        The kernel drops pages before it sends such a write, so that a read may have filled them again, with
        what was there before; and it knows a larger size as soon as it is answered.
        """
        if ino not in self._empty:
            self.created(ino)
            self.stale(ino)

    def changed(self, ino: int, learnt: Learnt) -> None:
        """Note what was learnt of a file that is open here; to be called before anybody is told its new size.

        If it grew, its pages are dropped soon: behind the old end the kernel's last page has zeros, and it
        would show them as soon as it is told a larger size. Else the next open drops them.

        A file that has another size is unsettled for a while, until the kernel has taken in all answers to
        what it asked before: it ignores those to what it asked before pages were dropped. It may take the
        file to be shorter, and end reads there; or to be longer, and fill up with zeros what a read lacks.
        (To drop pages would have it ignore such short reads even more, as it does after every news.)
        """
        if learnt is Learnt.GROWTH:
            self.stale(ino)
        elif learnt:
            self.doubt(ino)
        if learnt in (Learnt.GROWTH, Learnt.SHRINKAGE):
            until = time.monotonic() + UNSETTLED_SECONDS
            with self._lock:
                keep_newest(self._unsettled, ino, until, self._most)
                if learnt is Learnt.SHRINKAGE:
                    keep_newest(self._shortened, ino, until, self._most)

    def is_unsettled(self, ino: int) -> bool:
        """Tell whether what is opened now should be read past the kernel's pages."""
        return self._unsettled.get(ino, 0.0) > time.monotonic()

    def is_shortened(self, ino: int) -> bool:
        """Tell whether a file became shorter elsewhere so lately that the kernel may not know it."""
        return self._shortened.get(ino, 0.0) > time.monotonic()

    def attributes_changed(self, *inodes: int) -> None:
        """Have the kernel ask again: they have changed although it has not asked for that."""
        if self._dropper is not None:
            for ino in inodes:
                self._dropper.drop_attributes(ino)

    def stale(self, ino: int) -> None:
        """The kernel has wrong bytes in its pages: drop them soon, and at the next open."""
        self.doubt(ino)
        if self._dropper is not None:
            self._dropper.drop_soon(ino)

    def doubt(self, ino: int) -> None:
        """Let the next open drop the pages."""
        with self._lock:
            self._versions.pop(ino, None)
            self._dropping.pop(ino, None)

    def doubt_all(self) -> None:
        """Let the next open of every inode drop its pages."""
        with self._lock:
            self._versions.clear()
            self._dropping.clear()
