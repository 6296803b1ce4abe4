"""Names and attributes as the server told them. Bounded.

A mount's own changes are seen at once: they forget or replace what they change, and refuse answers to
questions that were asked before. Other mounts' changes are seen within `LIFE_SECONDS`, and there are none
while the mount is alone: what is learnt then holds as long as that goes on (fusefs.grant). open(2) relies on
names only while the mount is alone (see fusefs.walks), and else rename(2) on one name of an inode at most:
the kernel takes two names of one inode for hard links, and does nothing (promise P8). Safe in any thread; no
I/O.
"""

from __future__ import annotations

import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from fusefs.clock import seconds_passed
from fusefs.grant import Grant
from wire.messages import Attributes

LIFE_SECONDS = 1.0
MOST_ENTRIES = 262_144
"""So many names, and attributes of as many inodes, are kept, two thirds of a KiB each. Who goes through a
directory again and again that has more of them asks the server for each."""
MOST_NOTES = 65_536
"""So many changes of this mount, whole directories and inodes without security attributes."""
_PACKED = struct.Struct("12q")
"""Attributes as they are kept: a third of the memory that as many integers take."""

K = TypeVar("K")
T = TypeVar("T")


class Asked(NamedTuple):
    """When a question was asked: after how many changes of this mount, and in which era (0: not alone)."""

    changes: int
    era: int


class _Life(NamedTuple):
    """How long something is held to be right: until a moment, and while an era goes on."""

    until: float
    era: int


class _Known(NamedTuple):
    ino: int
    """0: there is no such name."""
    life: _Life


class _Seen(NamedTuple):
    packed: bytes
    life: _Life

    @property
    def attributes(self) -> Attributes:
        return Attributes._make(_PACKED.unpack(self.packed))


class _Plain(NamedTuple):
    all_of_them: bool
    life: _Life


CAPABILITY, SECURITY = b"security.capability", b"security."
Name = tuple[int, bytes]


class _Changes:
    """Which of this mount's changes was the last one of each name and inode. Bounded: the oldest are one."""

    def __init__(self, most_entries: int) -> None:
        self._most = most_entries
        self.count = 0
        self._last: OrderedDict[Name | int, int] = OrderedDict()
        self._floor = self._inode_floor = 0

    def begin(self) -> None:
        self.count += 1

    def note(self, key: Name | int) -> None:
        """The change that has begun changed this name or inode."""
        self._last[key] = self.count
        self._last.move_to_end(key)
        if len(self._last) > self._most:
            _, self._floor = self._last.popitem(last=False)

    def note_all_inodes(self) -> None:
        self._inode_floor = self.count

    def note_everything(self) -> None:
        self._floor = self.count
        self._last.clear()

    def since(self, asked: Asked, key: Name | int) -> bool:
        """Tell whether a name or inode was changed, or may have been, since a question was asked."""
        floor = max(self._floor, self._inode_floor) if isinstance(key, int) else self._floor
        return max(self._last.get(key, 0), floor) > asked.changes


class NameCache:
    """(directory, name) -> inode number, inode number -> attributes, inodes without security attributes.

    Args:
        grant: whether this mount counts as alone.
        life_seconds: how long anything is held to be right while it does not.
        most_entries: so many names, and attributes of as many inodes, are kept at most.
        clock: in seconds; see fusefs.clock.
    """

    def __init__(
        self,
        grant: Grant | None = None,
        life_seconds: float = LIFE_SECONDS,
        most_entries: int = MOST_ENTRIES,
        clock: Callable[[], float] = seconds_passed,
    ) -> None:
        self._grant = grant or Grant()
        self._seconds, self._most, self._clock = life_seconds, most_entries, clock
        self._lock = threading.Lock()
        self._names: OrderedDict[Name, _Known] = OrderedDict()
        self._name_of: dict[int, Name] = {}
        self._attributes: OrderedDict[int, _Seen] = OrderedDict()
        self._plain: OrderedDict[int, _Plain] = OrderedDict()
        self._whole: OrderedDict[int, int] = OrderedDict()
        """Directories all of whose names are known, each with the era."""
        self._most_notes = min(most_entries, MOST_NOTES)
        self._changes = _Changes(self._most_notes)
        self._newest_asked, self._newest_life = Asked(0, 0), _Life(0.0, 0)

    # questions

    def asking(self) -> Asked:
        """Return a token to be taken before the server is asked, and handed in with its answer."""
        return Asked(self._changes.count, self._grant.era())

    def find(self, parent: int, name: bytes) -> Attributes | None:
        """Return the attributes of a name's inode if both are known."""
        ino = self.number(parent, name)
        return None if ino is None else self.attributes(ino)

    def number(self, parent: int, name: bytes) -> int | None:
        """Return a name's inode number if it is known."""
        known = self._names.get((parent, name))
        return known.ino if known is not None and known.ino and self._holds(known.life) else None

    def is_absent(self, parent: int, name: bytes) -> bool:
        """Tell whether it is known that there is no such name: only while this mount is alone."""
        era = self._grant.era()
        if not era:
            return False
        known = self._names.get((parent, name))
        if known is not None and known.life.era == era:
            return not known.ino
        return known is None and self._whole.get(parent) == era

    def attributes(self, ino: int) -> Attributes | None:
        seen = self._attributes.get(ino)
        return seen.attributes if seen is not None and self._holds(seen.life) else None

    def is_certain(self, attributes: Attributes) -> bool:
        """Tell whether these are an inode's attributes until this mount changes them or the era ends."""
        seen = self._attributes.get(attributes.ino)
        return seen is not None and self._goes_on(seen.life) and seen.packed == _PACKED.pack(*attributes)

    def is_certain_name(self, parent: int, name: bytes, ino: int) -> bool:
        """Tell whether this is a name's inode until this mount changes it or the era ends."""
        known = self._names.get((parent, name))
        return known is not None and known.ino == ino and self._goes_on(known.life)

    def lacks(self, ino: int, name: bytes) -> bool:
        """Tell whether an inode is known to lack an extended attribute of the space `security`."""
        plain = self._plain.get(ino)
        if plain is None or not (name == CAPABILITY or (plain.all_of_them and name.startswith(SECURITY))):
            return False
        return self._holds(plain.life)

    def _holds(self, life: _Life) -> bool:
        return life.until >= self._clock() or self._goes_on(life)

    def _goes_on(self, life: _Life) -> bool:
        return life.era != 0 and life.era == self._grant.era()

    def is_unchanged(self, asked: Asked, ino: int) -> bool:
        """Tell whether an inode is certainly as it was when it was asked for: only while alone."""
        return asked.era != 0 and asked.era == self._grant.era() and not self._changes.since(asked, ino)

    # answers

    def learn(self, asked: Asked, attributes: Attributes) -> None:
        """Keep an answer about an inode, unless this mount changed it since it was asked."""
        with self._lock:
            self._learn(asked, attributes)

    def _learn(self, asked: Asked, attributes: Attributes) -> None:
        if not self._changes.since(asked, attributes.ino):
            self._keep(self._life(asked), attributes)
            return
        seen = self._attributes.get(attributes.ino)  # what comes too late may be newer than this all the same
        if seen is not None and seen.attributes.version < attributes.version:
            self._forget_inode(attributes.ino)

    def learn_name(self, asked: Asked, parent: int, name: bytes, attributes: Attributes) -> None:
        """Keep an answer about a name, unless this mount changed it since it was asked."""
        with self._lock:
            self._learn_name(asked, parent, name, attributes)

    def _learn_name(self, asked: Asked, parent: int, name: bytes, attributes: Attributes) -> None:
        if not self._changes.since(asked, (parent, name)):
            self._keep_name(self._life(asked), parent, name, attributes.ino)
        elif (other := self._name_of.get(attributes.ino)) not in (None, (parent, name)):
            self._drop_name(other)  # another mount may have renamed it since
        self._learn(asked, attributes)

    def learn_absent(self, asked: Asked, parent: int, name: bytes) -> None:
        """Keep the answer that there is no such name."""
        with self._lock:
            if asked.era and not self._changes.since(asked, (parent, name)):
                self._keep_name(self._life(asked), parent, name, 0)

    def learn_whole(self, asked: Asked, parent: int) -> None:
        """Keep that all names of a directory have been learnt since it was asked for them."""
        with self._lock:
            if asked.era and not self._changes.since(asked, parent):
                keep_newest(self._whole, parent, asked.era, self._most_notes)

    def learn_plain(self, asked: Asked, ino: int, *, all_of_them: bool) -> None:
        """Keep the answer that an inode has no capabilities, or nothing at all of the space `security`."""
        with self._lock:
            if not self._changes.since(asked, ino):
                keep_newest(self._plain, ino, _Plain(all_of_them, self._life(asked)), self._most_notes)

    # changes of this mount

    def changed(self, *, names: tuple[Name, ...] = (), inodes: tuple[int, ...] = ()) -> None:
        """Forget names and attributes that this mount has just changed, or may have.

        Of a name that is not known, whose links have changed is not known either: all attributes go.
        """
        with self._lock:
            self._changes.begin()
            for parent, name in names:
                self._forget_name(parent, name)
                self._forget_inode(parent)
                self._whole.pop(parent, None)
            for ino in inodes:
                self._forget_inode(ino)
                self._plain.pop(ino, None)

    def removed(self, asked: Asked, parent: int, name: bytes, directory: Attributes) -> None:
        """Forget a name that this mount has just removed; keep the attributes of its directory."""
        with self._lock:
            alone = asked.era and not self._changes.since(asked, (parent, name))
            self._changes.begin()
            self._forget_name(parent, name)
            if alone:
                self._keep_name(self._life(asked), parent, name, 0)
            else:
                self._whole.pop(parent, None)
            self._set(asked, directory)

    def made(
        self,
        asked: Asked,
        parent: int,
        name: bytes,
        attributes: Attributes,
        changed_ns: int = 0,
        *,
        new: bool = False,
    ) -> None:
        """Keep a name that this mount has just made; a `new` inode has no names in it, and no attributes.

        What it changed meanwhile also, who knows in which order, is forgotten. `changed_ns` is the time that
        its directory has now if nothing else of it has changed (0: who knows).
        """
        ino, key = attributes.ino, (parent, name)
        with self._lock:
            certain = not self._changes.since(asked, key)
            self._changes.begin()
            self._changes.note(key)
            self._enter(parent, changed_ns)
            if certain:
                self._keep_name(self._life(asked), parent, name, ino)
            else:
                self._pop_name(key)
                self._whole.pop(parent, None)
            self._set(asked, attributes)
            if new:
                keep_newest(self._plain, ino, _Plain(True, self._life(asked)), self._most_notes)
            if new and asked.era and stat.S_ISDIR(attributes.mode):
                keep_newest(self._whole, ino, asked.era, self._most_notes)

    def entered(self, parent: int, changed_ns: int) -> None:
        """Keep the time at which a directory got a name that is known here already."""
        with self._lock:
            self._changes.begin()
            self._enter(parent, changed_ns)

    def _enter(self, parent: int, changed_ns: int) -> None:
        seen = self._attributes.get(parent)
        self._forget_inode(parent)
        if seen is None or not changed_ns:
            return
        old = seen.attributes
        if changed_ns > old.ctime_ns:  # else something came later, and is known already
            seen = _seen(old._replace(mtime_ns=changed_ns, ctime_ns=changed_ns), seen.life)
        self._attributes[parent] = seen

    def set(self, asked: Asked, attributes: Attributes) -> None:
        """Keep attributes that this mount has just changed, unless it changed them otherwise meanwhile."""
        with self._lock:
            self._changes.begin()
            self._set(asked, attributes)

    def _set(self, asked: Asked, attributes: Attributes) -> None:
        certain = not self._changes.since(asked, attributes.ino)
        self._forget_inode(attributes.ino)
        if certain:
            self._keep(self._life(asked), attributes)

    def forget(self) -> None:
        """Forget everything, so that the next question about each name and inode goes to the server."""
        with self._lock:
            self._changes.begin()
            self._changes.note_everything()
            self._names.clear()
            self._name_of.clear()
            self._attributes.clear()
            self._plain.clear()
            self._whole.clear()

    def _forget_name(self, parent: int, name: bytes) -> None:
        known = self._pop_name((parent, name))
        self._changes.note((parent, name))
        if known is None or not known.ino or not self._holds(known.life):
            self._attributes.clear()
            self._changes.note_all_inodes()
        else:
            self._forget_inode(known.ino)

    def _forget_inode(self, ino: int) -> None:
        self._attributes.pop(ino, None)
        self._changes.note(ino)

    # keeping

    def _life(self, asked: Asked) -> _Life:
        """Return how long an answer holds: all that come with one answer share it."""
        if asked is not self._newest_asked:
            self._newest_asked = asked
            self._newest_life = _Life(self._clock() + self._seconds, asked.era)
        return self._newest_life

    def _keep_name(self, life: _Life, parent: int, name: bytes, ino: int) -> None:
        key = parent, name
        self._pop_name(key)
        if ino and (other := self._name_of.get(ino)) is not None:
            if life.era and self._names[other].life.era == life.era:
                life = _Life(0.0, life.era)  # hard links, as far as this era goes
                self._names[other] = _Known(ino, life)
            else:
                self._drop_name(other)  # another mount may have renamed it since
        self._names[key] = _Known(ino, life)
        if ino:
            self._name_of[ino] = key
        if len(self._names) > self._most:
            self._drop_name(next(iter(self._names)))

    def _pop_name(self, key: Name) -> _Known | None:
        known = self._names.pop(key, None)
        if known is not None and self._name_of.get(known.ino) == key:
            del self._name_of[known.ino]
        return known

    def _drop_name(self, key: Name) -> None:
        """Forget a name although nothing was heard of it: not all of its directory is known then."""
        self._pop_name(key)
        self._changes.begin()
        self._changes.note(key[0])
        self._whole.pop(key[0], None)

    def _keep(self, life: _Life, attributes: Attributes) -> None:
        keep_newest(self._attributes, attributes.ino, _seen(attributes, life), self._most)


def _seen(attributes: Attributes, life: _Life) -> _Seen:
    return _Seen(_PACKED.pack(*attributes), life)


def keep_newest(entries: OrderedDict[K, T], key: K, value: T, most: int) -> None:
    """Put a value last, and let the first one go if there are more than `most`."""
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > most:
        entries.popitem(last=False)
