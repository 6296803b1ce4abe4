"""Extended attributes. In the event loop's thread only, each change inside of a transaction."""

from __future__ import annotations

from metaserver import rules
from metaserver.inodes import Inodes
from metaserver.store import Store
from wire.errors import AlreadyExists, NoAttribute, NoSpace


class ExtendedAttributes:
    """The table `xattrs`."""

    def __init__(self, store: Store, inodes: Inodes) -> None:
        self._store = store
        self._execute = store.execute
        self._inodes = inodes

    def get(self, ino: int, name: bytes) -> bytes:
        """Return a value. Raises NoAttribute, StaleFile."""
        self._inodes.load(ino)
        row = self._execute("SELECT value FROM xattrs WHERE ino = ? AND name = ?", (ino, name)).fetchone()
        if row is None:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        return bytes(row[0])

    def names(self, ino: int) -> list[bytes]:
        """Return all names, in order. Raises StaleFile."""
        self._inodes.load(ino)
        rows = self._execute("SELECT name FROM xattrs WHERE ino = ? ORDER BY name", (ino,)).fetchall()
        return [row[0] for row in rows]

    def set(self, _session: int, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Set a value; see wire.methods.namespace. Raises NoSpace when there are too many names, too."""
        rules.check_xattr(name, value, flags)
        names = self.names(ino)
        if name in names:
            if flags == rules.XATTR_CREATE:
                raise AlreadyExists(f"inode {ino} has an attribute {name!r} already")
        elif flags == rules.XATTR_REPLACE:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        elif sum(len(other) + 1 for other in [*names, name]) > rules.XATTR_LIST_BYTES:
            raise NoSpace(f"inode {ino} has too many extended attributes")
        self._execute("REPLACE INTO xattrs VALUES (?, ?, ?)", (ino, name, value))
        self._inodes.status_changed(ino, self._store.now_ns())

    def remove(self, _session: int, ino: int, name: bytes) -> None:
        """Remove an attribute. Raises NoAttribute, StaleFile."""
        self._inodes.load(ino)
        removed = self._execute("DELETE FROM xattrs WHERE ino = ? AND name = ?", (ino, name))
        if not removed.rowcount:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        self._inodes.status_changed(ino, self._store.now_ns())
