"""Names: looking up, creating, linking, removing, renaming, listing. In the event loop's thread only.

Each public function is called inside of a transaction (those that take a session first) or as a plain
read. What can be decided without the database is in `rules`. Permissions are not checked here.
"""

from __future__ import annotations

import sqlite3
import stat

from metaserver import rules
from metaserver.contents import Contents
from metaserver.inodes import COLUMNS, Inodes
from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.attribute_rules import changed
from wire.errors import (
    AlreadyExists,
    GracePeriod,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotAlone,
    NotEmpty,
    NotFound,
    NotPermitted,
    StaleFile,
    TooManyLinks,
)
from wire.messages import ROOT_INODE, AttributeChanges, Attributes, Birth, DirectoryPage, Entry

PAGE_ENTRIES_MAX = 4096
PATH_STEPS_MAX = 100_000
"""A path has at most so many names: bounds the walk up in a damaged database."""

_ENTRY_COLUMNS = ", ".join(f"i.{column}" for column in COLUMNS.split(", "))
_LOOK_UP = (
    f"SELECT {_ENTRY_COLUMNS} FROM entries AS e CROSS JOIN inodes AS i ON i.ino = e.ino"
    " WHERE e.parent = ? AND e.name = ?"
)
FIRST_VERSION = 1
"""Of an inode that nothing was written to."""
_SECURED = (
    "SELECT 1 FROM xattrs WHERE ino = ? AND name >= x'73656375726974792e' AND name < x'73656375726974792f'"
)
"""Names that begin with "security."."""
_PAGE = (
    f"SELECT e.name, {_ENTRY_COLUMNS} FROM entries AS e CROSS JOIN inodes AS i ON i.ino = e.ino"
    " WHERE e.parent = ? AND e.name > ? ORDER BY e.name LIMIT ?"
)


class Namespace:
    """The tree of names."""

    def __init__(self, store: Store, inodes: Inodes, contents: Contents, sessions: Sessions) -> None:
        self._store = store
        self._execute = store.execute
        self._inodes = inodes
        self._contents = contents
        self._sessions = sessions

    def resolve(self, start: int, names: list[bytes]) -> list[Attributes]:
        """Follow names from a directory; return the attributes of each step that exists.

        Where a name is found, the step before was a directory: only a miss asks for it.
        """
        if not names:
            self._inodes.load(start)
        steps: list[Attributes] = []
        at = start
        for name in names:
            if len(name) > rules.NAME_BYTES:
                raise NameTooLong(f"a name has at most {rules.NAME_BYTES} bytes")
            found = self._look_up(at, name)
            if found is None:
                self._inodes.directory(at)  # only a directory can lack a name
                break
            steps.append(found)
            at = found.ino
        return steps

    def arrive(self, start: int, names: list[bytes], ino: int) -> Attributes:
        """Follow names that must lead to `ino`; return its attributes. Raises StaleFile when they do not."""
        steps = self.resolve(start, names)
        if len(steps) < len(names) or steps[-1].ino != ino:
            raise StaleFile(f"the names do not lead to inode {ino}")
        return steps[-1]

    def _look_up(self, parent: int, name: bytes) -> Attributes | None:
        row = self._execute(_LOOK_UP, (parent, name)).fetchone()
        return None if row is None else Attributes(*row)

    def _existing(self, parent: int, name: bytes) -> Attributes:
        rules.check_name(name)
        found = self._look_up(parent, name)
        if found is None:
            raise NotFound(f"there is no {name!r} in directory {parent}")
        return found

    def read_directory(self, ino: int, after: bytes, limit: int) -> DirectoryPage:
        """Return up to `limit` (at most PAGE_ENTRIES_MAX) entries with names greater than `after`."""
        if limit < 1:
            raise InvalidArgument("a page has at least one entry")
        self._inodes.directory(ino)
        limit = min(limit, PAGE_ENTRIES_MAX)
        rows = self._execute(_PAGE, (ino, after, limit + 1)).fetchall()
        entries = [Entry(row[0], Attributes._make(row[1:])) for row in rows[:limit]]
        return DirectoryPage(entries, len(rows) <= limit, self._secured(entries))

    def _secured(self, entries: list[Entry]) -> list[int]:
        if self._execute("SELECT 1 FROM xattrs LIMIT 1").fetchone() is None:
            return []
        numbers = dict.fromkeys(entry.attributes.ino for entry in entries)
        return [ino for ino in numbers if self._execute(_SECURED, (ino,)).fetchone() is not None]

    def parent(self, ino: int) -> Attributes:
        """Return the directory that a directory is in. Raises StaleFile, NotADirectory."""
        self._inodes.directory(ino)
        (parent,) = self._execute("SELECT parent FROM inodes WHERE ino = ?", (ino,)).fetchone()
        return self._inodes.load(parent)

    def read_link(self, ino: int) -> bytes:
        """Return a symbolic link's target. Raises StaleFile, InvalidArgument."""
        if not stat.S_ISLNK(self._inodes.load(ino).mode):
            raise InvalidArgument(f"inode {ino} is no symbolic link")
        (target,) = self._execute("SELECT target FROM inodes WHERE ino = ?", (ino,)).fetchone()
        return bytes(target)

    def setattr(self, _session: int, ino: int, changes: AttributeChanges) -> Attributes:
        """Change attributes (not the size) and the change time. Raises StaleFile, InvalidArgument."""
        new = changed(self._inodes.load(ino), changes, self._store.now_ns())
        self._inodes.save(new)
        return new

    def create(
        self,
        _session: int,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes,
    ) -> Attributes:
        """Make a file of any type; see wire.methods.namespace."""
        ino, now = self._store.take_inode_numbers(1), self._store.now_ns()
        new = self._enter(now, ino, parent, name, mode, uid, gid, rdev, target)
        self._inodes.add(new, parent if stat.S_ISDIR(new.mode) else 0, target or None)
        return new

    def _enter(
        self,
        now: int,
        ino: int,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attributes:
        """Give a new inode, which is still to be added, its name; return its attributes."""
        rules.check_name(name)
        rules.check_new_inode(mode, uid, gid, rdev, target)
        directory = self._inodes.living_directory(parent)
        mode, gid = rules.inherited(directory.mode, directory.gid, mode, gid)
        is_directory = stat.S_ISDIR(mode)
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        new = Attributes(
            ino=ino,
            mode=mode,
            nlink=2 if is_directory else 1,
            uid=uid,
            gid=gid,
            rdev=rdev if is_device else 0,
            size=len(target),
            allocated_bytes=0,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            version=FIRST_VERSION,
        )
        self._add_entry(parent, name, ino)
        self._inodes.entries_changed(parent, now, links=int(is_directory))
        return new

    def bear(self, session: int, ino: int, birth: Birth, now_ns: int | None = None) -> Attributes | None:
        """Name a regular file under a number that was reserved; see `commit`, which adds the inode.

        Args:
            session: who makes it.
            ino: the number.
            birth: what is made.
            now_ns: the time to take for it; None: this server's.

        Returns:
            Its attributes; None if that very file is there already.
        """
        parent, name, mode, uid, gid = birth
        if self._store.was_given(ino) and self._sessions.is_alone(session):
            now = self._store.now_ns() if now_ns is None else now_ns
            try:
                return self._enter(now, ino, parent, name, rules.of_a_file(mode), uid, gid)
            except AlreadyExists:
                if self._is_named(parent, name, ino):
                    return None
                raise
        if self._is_named(parent, name, ino):
            return None
        if not self._store.was_given(ino):
            raise InvalidArgument(f"inode number {ino} is not reserved")
        raise NotAlone("another mount came before the file was made")

    def _is_named(self, parent: int, name: bytes, ino: int) -> bool:
        found = self._look_up(parent, name)
        return found is not None and found.ino == ino

    def _add_entry(self, parent: int, name: bytes, ino: int) -> None:
        try:
            self._execute("INSERT INTO entries VALUES (?, ?, ?)", (parent, name, ino))
        except sqlite3.IntegrityError:
            raise AlreadyExists(f"{name!r} is in directory {parent} already") from None
        self._store.totals["entries"] += 1

    def _remove_entry(self, parent: int, name: bytes) -> None:
        self._execute("DELETE FROM entries WHERE parent = ? AND name = ?", (parent, name))
        self._store.totals["entries"] -= 1

    def link(self, _session: int, ino: int, parent: int, name: bytes) -> Attributes:
        """Give an inode that is no directory one more name; see wire.methods.namespace."""
        rules.check_name(name)
        old = self._inodes.load(ino)
        if stat.S_ISDIR(old.mode):
            raise NotPermitted("a directory has one name only")
        if not old.nlink:
            raise NotFound(f"inode {ino} has no name any more")
        if old.nlink >= rules.LINKS_MAX:
            raise TooManyLinks(f"inode {ino} has {old.nlink} names")
        self._inodes.living_directory(parent)
        now = self._store.now_ns()
        self._add_entry(parent, name, ino)
        new = old._replace(nlink=old.nlink + 1, ctime_ns=now)
        self._inodes.save(new)
        self._inodes.entries_changed(parent, now)
        return new

    def unlink(self, _session: int, parent: int, name: bytes) -> Attributes:
        """Remove a name that is no directory; see wire.methods.namespace."""
        directory = self._inodes.directory(parent)
        found = self._existing(parent, name)
        if stat.S_ISDIR(found.mode):
            raise IsADirectory(f"{name!r} is a directory")
        now = self._store.now_ns()
        self._remove_name(parent, name, found, now)
        return directory._replace(mtime_ns=now, ctime_ns=now)

    def remove_known(self, parent: int, name: bytes, ino: int, now_ns: int) -> bool:
        """Remove the name of a file that is no directory, if it is this inode's; return whether it was."""
        found = self._look_up(parent, name)
        if found is None or found.ino != ino or stat.S_ISDIR(found.mode):
            return False
        self._remove_name(parent, name, found, now_ns)
        return True

    def _remove_name(self, parent: int, name: bytes, found: Attributes, now_ns: int) -> None:
        """Remove a name of a file at this time, which its directory has from then on."""
        self._remove_entry(parent, name)
        self._inodes.entries_changed(parent, now_ns)
        self._lose_name(found, now_ns)

    def take_back(self, session: int, parent: int, name: bytes, ino: int) -> None:
        """Remove the name of a file of which nothing ever came; see wire.methods.namespace."""
        found = self._look_up(parent, name)
        if (
            found is None
            or (found.ino, found.nlink, found.size, found.version) != (ino, 1, 0, FIRST_VERSION)
            or not stat.S_ISREG(found.mode)
            or self._sessions.is_open_elsewhere(session, ino)
        ):
            return
        if self._sessions.others_are_telling(session):
            raise GracePeriod("sessions are still telling what they have open")
        self._remove_name(parent, name, found, self._store.now_ns())

    def rmdir(self, _session: int, parent: int, name: bytes) -> Attributes:
        """Remove an empty directory; see wire.methods.namespace."""
        directory = self._inodes.directory(parent)
        found = self._existing(parent, name)
        if not stat.S_ISDIR(found.mode):
            raise NotADirectory(f"{name!r} is no directory")
        if not self._is_empty(found.ino):
            raise NotEmpty(f"{name!r} has entries")
        now = self._store.now_ns()
        self._remove_entry(parent, name)
        self._inodes.entries_changed(parent, now, links=-1)
        self._lose_name(found, now)
        return directory._replace(mtime_ns=now, ctime_ns=now, nlink=directory.nlink - 1)

    def _is_empty(self, directory: int) -> bool:
        first = self._execute("SELECT 1 FROM entries WHERE parent = ? LIMIT 1", (directory,)).fetchone()
        return first is None

    def _lose_name(self, old: Attributes, now_ns: int) -> None:
        """Count one name less; an inode without names goes, unless a session may have it open."""
        if old.nlink > 1 and not stat.S_ISDIR(old.mode):
            self._inodes.save(old._replace(nlink=old.nlink - 1, ctime_ns=now_ns))
        elif self._sessions.may_be_open(old.ino):
            self._execute(
                "UPDATE inodes SET nlink = 0, parent = 0, ctime_ns = ? WHERE ino = ?", (now_ns, old.ino)
            )
        elif old.allocated_bytes:
            self._contents.condemn(old.ino)
        else:
            self._contents.remove(old.ino)

    def rename(
        self, _session: int, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """Move a name atomically; see wire.methods.namespace."""
        rules.check_rename_flags(flags)
        rules.check_name(new_name)
        self._inodes.directory(parent)
        self._inodes.living_directory(new_parent)
        source = self._existing(parent, name)
        target = self._look_up(new_parent, new_name)
        rules.check_rename_target(target is not None, flags)
        self._check_no_loop(source, new_parent)
        if target is not None:
            if flags == rules.RENAME_EXCHANGE:
                self._check_no_loop(target, parent)
            elif self._is_above(target, parent):
                raise NotEmpty("what is to be renamed lies in the directory that it would replace")
            else:
                rules.check_replaced(source, target, self._is_empty(target.ino))
        if target is not None and source.ino == target.ino:
            return
        now = self._store.now_ns()
        self._remove_entry(parent, name)
        if target is not None:
            self._remove_entry(new_parent, new_name)
            if flags == rules.RENAME_EXCHANGE:
                self._place(target, new_parent, parent, name, now)
            else:
                self._lose_replaced(target, new_parent, now)
        self._place(source, parent, new_parent, new_name, now)
        self._inodes.entries_changed(parent, now)
        self._inodes.entries_changed(new_parent, now)

    def _check_no_loop(self, moved: Attributes, into: int) -> None:
        """Refuse to move a directory into itself or below itself. Raises InvalidArgument."""
        if self._is_above(moved, into):
            raise InvalidArgument("a directory cannot be moved into its own subtree")

    def _is_above(self, upper: Attributes, at: int) -> bool:
        """Tell whether a directory is, or lies below, `upper`. Raises InvalidArgument: too deep."""
        if not stat.S_ISDIR(upper.mode):
            return False
        for _ in range(PATH_STEPS_MAX):
            if at == upper.ino:
                return True
            if at in (ROOT_INODE, 0):
                return False
            (at,) = self._execute("SELECT parent FROM inodes WHERE ino = ?", (at,)).fetchone()
        raise InvalidArgument("the directory lies too deep")

    def _lose_replaced(self, target: Attributes, parent: int, now_ns: int) -> None:
        if stat.S_ISDIR(target.mode):
            self._inodes.entries_changed(parent, now_ns, links=-1)
        self._lose_name(target, now_ns)

    def _place(self, moved: Attributes, parent_before: int, parent: int, name: bytes, now_ns: int) -> None:
        """Give an inode that lost its entry in `parent_before` one in `parent`."""
        self._add_entry(parent, name, moved.ino)
        self._inodes.status_changed(moved.ino, now_ns)
        if stat.S_ISDIR(moved.mode) and parent != parent_before:
            self._execute("UPDATE inodes SET parent = ? WHERE ino = ?", (parent, moved.ino))
            self._inodes.entries_changed(parent, now_ns, links=1)
            self._inodes.entries_changed(parent_before, now_ns, links=-1)

    def paths_of(self, ino: int, limit: int) -> list[bytes]:
        """Return up to `limit` paths (from /) by which an inode can be reached."""
        if ino == ROOT_INODE:
            return [b"/"]
        rows = self._execute("SELECT parent, name FROM entries WHERE ino = ? LIMIT ?", (ino, max(0, limit)))
        return [self._path_of_directory(parent) + name for parent, name in rows.fetchall()]

    def _path_of_directory(self, ino: int) -> bytes:
        """Return a directory's path, ending with a slash."""
        names: list[bytes] = []
        while ino != ROOT_INODE and len(names) < PATH_STEPS_MAX:
            row = self._execute("SELECT parent, name FROM entries WHERE ino = ?", (ino,)).fetchone()
            if row is None:
                break
            ino = row[0]
            names.append(row[1])
        return b"/" + b"".join(name + b"/" for name in reversed(names))
