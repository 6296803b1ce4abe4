"""Names and attributes as the server told them a moment ago, and which kernel pages are right. Bounded.

A mount's own changes are seen at once: they forget or replace what they change, and refuse answers to
questions that were asked before. Other mounts' changes are seen within `LIFE_SECONDS`; open(2) does not
rely on the cache (see fusefs.walks), and rename(2) on one name of an inode at most: the kernel takes two
names of one inode for hard links, and does nothing (promise P8). Safe in any thread; no I/O.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from fusefs.inodes import Learnt
from wire.messages import Attributes

LIFE_SECONDS = 1.0
UNSETTLED_SECONDS = 2 * LIFE_SECONDS
"""The kernel is told nothing older than a life; as long again for what is on its way to it."""
MOST_ENTRIES = 65536

K = TypeVar("K")
T = TypeVar("T")


class _Known(NamedTuple):
    ino: int
    until: float


class _Seen(NamedTuple):
    attributes: Attributes
    until: float


CAPABILITY, SECURITY = b"security.capability", b"security."


class NameCache:
    """(directory, name) -> inode number, inode number -> attributes, inodes without security attributes."""

    def __init__(
        self,
        life_seconds: float = LIFE_SECONDS,
        most_entries: int = MOST_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._life, self._most, self._clock = life_seconds, most_entries, clock
        self._lock = threading.Lock()
        self._names: OrderedDict[tuple[int, bytes], _Known] = OrderedDict()
        self._name_of: dict[int, tuple[int, bytes]] = {}
        self._attributes: OrderedDict[int, _Seen] = OrderedDict()
        self._plain: OrderedDict[int, tuple[float, bool]] = OrderedDict()
        self._absent: OrderedDict[tuple[int, bytes], float] = OrderedDict()
        self._changes = 0

    def asking(self) -> int:
        """Return a token to be taken before the server is asked, and handed in with its answer."""
        return self._changes

    def find(self, parent: int, name: bytes) -> Attributes | None:
        """Return the attributes of a name's inode if both are known."""
        known = self._names.get((parent, name))
        if known is None or known.until < self._clock():
            return None
        return self.attributes(known.ino)

    def number(self, parent: int, name: bytes) -> int | None:
        """Return a name's inode number if it is known."""
        known = self._names.get((parent, name))
        return None if known is None or known.until < self._clock() else known.ino

    def attributes(self, ino: int) -> Attributes | None:
        seen = self._attributes.get(ino)
        return None if seen is None or seen.until < self._clock() else seen.attributes

    def learn(self, token: int, attributes: Attributes) -> None:
        """Keep an answer about an inode, unless this mount changed something since it was asked."""
        with self._lock:
            if token == self._changes:
                self._keep(attributes)

    def learn_name(self, token: int, parent: int, name: bytes, attributes: Attributes) -> None:
        """Keep an answer about a name, unless this mount changed something since it was asked."""
        with self._lock:
            if token == self._changes:
                self._keep_name(parent, name, attributes)

    def is_absent(self, parent: int, name: bytes) -> bool:
        """Tell whether a directory is known to lack a name."""
        return self._absent.get((parent, name), 0.0) >= self._clock()

    def learn_absent(self, token: int, parent: int, name: bytes) -> None:
        """Keep the answer that a directory lacks a name, unless this mount changed something meanwhile."""
        with self._lock:
            if token == self._changes:
                _keep_newest(self._absent, (parent, name), self._clock() + self._life, self._most)

    def lacks(self, ino: int, name: bytes) -> bool:
        """Tell whether an inode is known to lack an extended attribute of the space `security`."""
        until, all_of_them = self._plain.get(ino, (0.0, False))
        return until >= self._clock() and (name == CAPABILITY or (all_of_them and name.startswith(SECURITY)))

    def learn_plain(self, token: int, ino: int, *, all_of_them: bool) -> None:
        """Keep the answer that an inode has no capabilities, or nothing at all of the space `security`."""
        with self._lock:
            if token == self._changes:
                self._plain[ino] = (self._clock() + self._life, all_of_them)
                self._plain.move_to_end(ino)
                if len(self._plain) > self._most:
                    self._plain.popitem(last=False)

    def changed(self, *, names: tuple[tuple[int, bytes], ...] = (), inodes: tuple[int, ...] = ()) -> None:
        """Forget names and attributes that this mount has just changed.

        Of a name that is not known, whose links have changed is not known either: all attributes go.
        """
        with self._lock:
            self._changed(names, inodes)

    def _changed(self, names: tuple[tuple[int, bytes], ...], inodes: tuple[int, ...]) -> None:
        self._changes += 1
        for key in names:
            self._absent.pop(key, None)
            known = self._pop_name(key)
            if known is None or known.until < self._clock():
                self._attributes.clear()
            else:
                self._attributes.pop(known.ino, None)
        for ino in inodes:
            self._attributes.pop(ino, None)
            self._plain.pop(ino, None)

    def forget(self) -> None:
        """Forget everything, so that the next question about each name and inode goes to the server."""
        with self._lock:
            self._changes += 1
            self._names.clear()
            self._name_of.clear()
            self._attributes.clear()
            self._plain.clear()
            self._absent.clear()

    def made(self, parent: int, name: bytes, attributes: Attributes, changed_ns: int = 0) -> None:
        """Keep a name that this mount has just made.

        `changed_ns` is the time that its directory has now if nothing else of it has changed (0: who knows).
        """
        with self._lock:
            self._changes += 1
            self._enter(parent, changed_ns)
            self._keep_name(parent, name, attributes)

    def entered(self, parent: int, changed_ns: int) -> None:
        """Keep the time at which a directory got a name that is known here already."""
        with self._lock:
            self._changes += 1
            self._enter(parent, changed_ns)

    def _enter(self, parent: int, changed_ns: int) -> None:
        seen = self._attributes.get(parent)
        if seen is None or not changed_ns:
            self._attributes.pop(parent, None)
            return
        old = seen.attributes
        times = {"mtime_ns": max(old.mtime_ns, changed_ns), "ctime_ns": max(old.ctime_ns, changed_ns)}
        self._attributes[parent] = seen._replace(attributes=old._replace(**times))

    def removed(self, token: int, parent: int, name: bytes, directory: Attributes) -> None:
        """Forget a name that this mount has just removed; keep the attributes of its directory."""
        with self._lock:
            untouched = token == self._changes
            self._changed(((parent, name),), (parent,))
            if untouched:
                self._keep(directory)

    def set(self, attributes: Attributes) -> None:
        """Keep attributes that this mount has just changed."""
        with self._lock:
            self._changes += 1
            self._keep(attributes)

    def _keep_name(self, parent: int, name: bytes, attributes: Attributes) -> None:
        self._absent.pop((parent, name), None)
        key = parent, name
        self._pop_name(key)
        if (other := self._name_of.get(attributes.ino)) is not None:
            self._pop_name(other)  # another mount may have renamed it since
        self._names[key] = _Known(attributes.ino, self._clock() + self._life)
        self._name_of[attributes.ino] = key
        if len(self._names) > self._most:
            self._pop_name(next(iter(self._names)))
        self._keep(attributes)

    def _pop_name(self, key: tuple[int, bytes]) -> _Known | None:
        known = self._names.pop(key, None)
        if known is not None:
            del self._name_of[known.ino]
        return known

    def _keep(self, attributes: Attributes) -> None:
        self._attributes[attributes.ino] = _Seen(attributes, self._clock() + self._life)
        self._attributes.move_to_end(attributes.ino)
        if len(self._attributes) > self._most:
            self._attributes.popitem(last=False)


class PageDropper(Protocol):
    """Who can have the kernel forget the pages and attributes of an inode."""

    def drop_soon(self, ino: int) -> None:
        """Drop them in a while. For any thread, also while the kernel waits for some of their bytes."""

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
        self._unsettled: OrderedDict[int, float] = OrderedDict()
        self._dropper: PageDropper | None = None

    def drop_with(self, dropper: PageDropper) -> None:
        """Use this one when pages are to be dropped while the file is open."""
        self._dropper = dropper

    def locked(self, ino: int, version: int) -> None:
        """Have the kernel read `version` from now on; it is just being told of a lock."""
        keep = self.opened(ino, version)
        if self._dropper is not None:
            (self._dropper.await_drops if keep else self._dropper.drop_now)(ino)

    def opened(self, ino: int, version: int) -> bool:
        """Tell whether the kernel may keep its pages at an open that found `version`."""
        with self._lock:
            keep = self._versions.get(ino) == version
            _keep_newest(self._versions, ino, version, self._most)
            return keep

    def committed(self, ino: int, version: int) -> None:
        """Note that this mount made `version` alone: the pages written through it are right."""
        with self._lock:
            if self._versions.get(ino) == version - 1:
                self._versions[ino] = version
            else:
                self._versions.pop(ino, None)

    def changed(self, ino: int, learnt: Learnt) -> None:
        """Note what was learnt of a file that is open here; to be called before anybody is told its new size.

        If it grew, its pages are dropped soon: behind the old end the kernel's last page has zeros, and it
        would show them as soon as it is told a larger size. Else the next open drops them.

        A file that has become shorter is unsettled for a while: until the kernel has taken in all answers to
        what it asked before, it may take the file to be longer, and fill up with zeros what a read lacks.
        (To drop pages would have it ignore such short reads even more, as it does after every news.)
        """
        if learnt is Learnt.GROWTH:
            self.stale(ino)
        elif learnt:
            self.doubt(ino)
        if learnt is Learnt.SHRINKAGE:
            with self._lock:
                _keep_newest(self._unsettled, ino, time.monotonic() + UNSETTLED_SECONDS, self._most)

    def is_unsettled(self, ino: int) -> bool:
        """Tell whether what is opened now should be read past the kernel's pages."""
        return self._unsettled.get(ino, 0.0) > time.monotonic()

    def stale(self, ino: int) -> None:
        """The kernel has wrong bytes in its pages: drop them soon, and at the next open."""
        self.doubt(ino)
        if self._dropper is not None:
            self._dropper.drop_soon(ino)

    def doubt(self, ino: int) -> None:
        """Let the next open drop the pages."""
        with self._lock:
            self._versions.pop(ino, None)

    def doubt_all(self) -> None:
        """Let the next open of every inode drop its pages."""
        with self._lock:
            self._versions.clear()


def _keep_newest(entries: OrderedDict[K, T], key: K, value: T, most: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > most:
        entries.popitem(last=False)
