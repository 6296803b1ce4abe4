"""Rows of the inode table: loading and storing attributes. In the event loop's thread only.

Decides one thing: an inode without a name that no session can have open is not shown to anybody.
"""

from __future__ import annotations

import sqlite3
import stat

from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.errors import InvalidArgument, NotADirectory, NotFound, StaleFile
from wire.messages import Attributes

COLUMNS = ", ".join(Attributes._fields)
_LOAD = f"SELECT {COLUMNS} FROM inodes WHERE ino = ?"
_ADD = f"INSERT INTO inodes ({COLUMNS}, parent, target) VALUES ({'?, ' * len(Attributes._fields)}?, ?)"
_SAVE = f"UPDATE inodes SET {', '.join(f'{name} = ?' for name in Attributes._fields[1:])} WHERE ino = ?"


class Inodes:
    """The inodes by number."""

    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._execute = store.execute
        self._sessions = sessions

    def load(self, ino: int) -> Attributes:
        """Return an inode's attributes. Raises StaleFile."""
        row = self._execute(_LOAD, (ino,)).fetchone()
        if row is None:
            raise StaleFile(f"inode {ino} does not exist")
        found = Attributes(*row)
        if found.nlink <= 0 and (found.nlink < 0 or not self._sessions.may_be_open(ino)):
            raise StaleFile(f"inode {ino} was removed")
        return found

    def directory(self, ino: int) -> Attributes:
        """Return a directory's attributes. Raises StaleFile, NotADirectory."""
        found = self.load(ino)
        if not stat.S_ISDIR(found.mode):
            raise NotADirectory(f"inode {ino} is no directory")
        return found

    def living_directory(self, ino: int) -> Attributes:
        """Return the attributes of a directory that may get new entries.

        Raises:
            StaleFile, NotADirectory, NotFound (it was removed, but a session has it open).
        """
        found = self.directory(ino)
        if not found.nlink:
            raise NotFound(f"the directory {ino} was removed")
        return found

    def add(self, new: Attributes, parent: int = 0, target: bytes | None = None) -> None:
        """Store a new inode; `parent` and `target` as in metaserver.schema.

        Raises:
            InvalidArgument: its number is taken.
        """
        try:
            self._execute(_ADD, (*new, parent, target))
        except sqlite3.IntegrityError:
            raise InvalidArgument(f"inode number {new.ino} is taken") from None
        self._store.totals["inodes"] += 1

    def save(self, attributes: Attributes) -> None:
        """Store all attributes of an inode."""
        self._execute(
            _SAVE,
            (*attributes[1:], attributes.ino),
        )

    def entries_changed(self, directory: int, now_ns: int, links: int = 0) -> None:
        """Note that a directory's entries changed, and by how many its subdirectories."""
        self._execute(
            "UPDATE inodes SET mtime_ns = ?, ctime_ns = ?, nlink = nlink + ? WHERE ino = ?",
            (now_ns, now_ns, links, directory),
        )

    def status_changed(self, ino: int, now_ns: int) -> None:
        """Note a change of an inode's status."""
        self._execute("UPDATE inodes SET ctime_ns = ? WHERE ino = ?", (now_ns, ino))
