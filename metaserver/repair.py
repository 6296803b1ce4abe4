"""Mends a database in which invariants of metaserver.check do not hold. No bytes of a file are given up.

What it heals: counts (recomputed from what they count), names of nothing (removed, and told), files,
directories and blocks that no name leads to (put into /lost+found), directories in a ring, inodes lost
from under their contents, garbage that is in use, what belongs to nobody (attributes, kept answers,
files that nobody has any more).
What it leaves, for the check to tell: a lost root, overlapping extents, extents of unknown blocks,
records with ids or digests of a wrong length, names that no program can use. To guess there could show
wrong bytes.

Works on a database that nobody else uses, in one transaction, in one thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from wire.messages import ROOT_INODE

LOST_AND_FOUND = b"lost+found"
_DIRECTORY = "(mode & 0xF000) = 0x4000"
_REGULAR = "(mode & 0xF000) = 0x8000"
_NAMES = "(SELECT count(*) FROM entries WHERE entries.ino = inodes.ino)"


class Action(NamedTuple):
    """What was mended: the name of the check that found it, and what was done, in words."""

    check: str
    done: str


def repair(connection: sqlite3.Connection) -> list[Action]:
    """Mend what can be mended; return what was done. All or nothing, durable when it returns.

    Raises:
        sqlite3.DatabaseError: nothing was changed.
    """
    work = _Repair(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        work.run()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return work.actions


class _Repair:
    """One repair. The order matters: first what names and contents hang on, last what is counted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._now_ns = time.time_ns()
        self.actions: list[Action] = []

    def run(self) -> None:
        """Mend everything, in order."""
        self._raise_counters()
        self._recreate_inodes()
        self._mend_names()
        self._mend_directories()
        self._find_nameless()
        self._mend_contents()
        self._find_blocks()
        self._drop_what_is_of_nobody()
        self._count()

    def _all(self, query: str, *values: object) -> list[Any]:
        return self._execute(query, values).fetchall()

    def _note(self, check: str, done: str) -> None:
        self.actions.append(Action(check, done))

    def _change(self, check: str, done: str, statement: str, *values: object) -> None:
        """Run a statement; if it changed rows, note it with their number."""
        changed = self._execute(statement, values).rowcount
        if changed > 0:
            self._note(check, f"{done} ({changed})")

    # numbers

    def _raise_counters(self) -> None:
        self._change(
            "inode-counter",
            "raised the counter of inode numbers",
            "UPDATE counters SET next = 1 + (SELECT max(ino) FROM inodes)"
            " WHERE name = 'inode' AND next <= (SELECT max(ino) FROM inodes)",
        )
        known = [session for (session,) in self._all("SELECT session FROM sessions")]
        for table in ("blocks", "garbage"):
            ((block,),) = self._all(f"SELECT max(block) FROM {table} WHERE length(block) = 16")
            known += [int.from_bytes(block[:8], "big")] if block is not None else []
        self._change(
            "session-counter",
            "raised the counter of session numbers",
            "UPDATE counters SET next = ?1 + 1 WHERE name = 'session' AND next <= ?1",
            max((session for session in known if session < 2**62), default=0),
        )

    def _new_inode(self, mode: int, size: int = 0, ino: int | None = None) -> int:
        """Make an inode that root owns, without a name; return its number."""
        if ino is None:
            ((ino,),) = self._all(
                "UPDATE counters SET next = next + 1 WHERE name = 'inode' RETURNING next - 1"
            )
        times = (self._now_ns,) * 3
        self._execute(
            "INSERT INTO inodes VALUES (?, ?, 1, 0, 0, 0, ?, 0, ?, ?, ?, 1, 0, NULL)",
            (ino, mode, size, *times),
        )
        assert ino is not None
        return ino

    def _recreate_inodes(self) -> None:
        """Give contents whose inode is lost a new one of the same number."""
        lost = self._all(
            "SELECT ino, max(offset + length) FROM extents WHERE ino NOT IN (SELECT ino FROM inodes)"
            " GROUP BY ino"
        )
        for ino, size in lost:
            self._new_inode(0o100600, size, ino)
            self._note("extent-size", f"made inode {ino} anew, which was lost from under its contents")
        self._raise_counters()

    # names

    def _mend_names(self) -> None:
        self._remove_names(
            "root", "SELECT parent, name, ino FROM entries WHERE ino = 1", "it named the root directory"
        )
        self._remove_names(
            "entry-inode",
            "SELECT parent, name, ino FROM entries WHERE ino NOT IN (SELECT ino FROM inodes)",
            "what it named does not exist",
        )
        self._change(
            "removed-directory",
            "took a removed directory that has a name for not removed",
            f"UPDATE inodes SET nlink = 2 WHERE nlink <= 0 AND {_DIRECTORY}"
            " AND ino IN (SELECT ino FROM entries)",
        )
        self._change(
            "entry-directory",
            "took a removed directory that has names in it for not removed",
            f"UPDATE inodes SET nlink = 2 WHERE nlink <= 0 AND {_DIRECTORY}"
            " AND ino IN (SELECT parent FROM entries)",
        )
        self._remove_names(
            "entry-directory",
            "SELECT parent, name, ino FROM entries WHERE parent NOT IN"
            f" (SELECT ino FROM inodes WHERE nlink > 0 AND {_DIRECTORY})",
            "its directory does not exist",
        )

    def _remove_names(self, check: str, query: str, why: str) -> None:
        for parent, name, ino in self._all(query):
            self._execute("DELETE FROM entries WHERE parent = ? AND name = ?", (parent, name))
            self._note(check, f"removed the name {name!r} of inode {ino} from directory {parent}: {why}")

    def _mend_directories(self) -> None:
        self._execute(f"UPDATE inodes SET parent = 1 WHERE ino = 1 AND {_DIRECTORY}")
        several = self._all(
            "SELECT e.ino, i.parent FROM entries AS e JOIN inodes AS i ON i.ino = e.ino"
            f" WHERE {_DIRECTORY} GROUP BY e.ino HAVING count(*) > 1"
        )
        for ino, parent in several:
            self._remove_names(
                "directory-name",
                f"SELECT parent, name, ino FROM entries WHERE ino = {ino}"
                f" ORDER BY parent != {parent}, parent, name LIMIT -1 OFFSET 1",
                "a directory has one name only",
            )
        nameless = self._all(
            f"SELECT ino FROM inodes WHERE {_DIRECTORY} AND nlink > 0 AND ino != 1 AND {_NAMES} = 0"
        )
        for (ino,) in nameless:
            self._put_into_lost_and_found("directory-name", ino, b"inode-%d" % ino)
        while (ino := self._unreached()) is not None:
            self._remove_names(
                "tree",
                f"SELECT parent, name, ino FROM entries WHERE ino = {ino}",
                "it was in a ring of directories",
            )
            self._put_into_lost_and_found("tree", ino, b"inode-%d" % ino)
        self._change(
            "directory-name",
            "put right which directory a directory is in",
            "UPDATE inodes SET parent = (SELECT parent FROM entries WHERE entries.ino = inodes.ino)"
            f" WHERE {_DIRECTORY} AND ino != 1 AND nlink > 0"
            " AND parent != (SELECT parent FROM entries WHERE entries.ino = inodes.ino)",
        )

    def _unreached(self) -> int | None:
        rows = self._all(
            "WITH RECURSIVE reached (ino) AS (SELECT 1 UNION SELECT i.ino FROM reached AS r"
            f" JOIN entries AS e ON e.parent = r.ino JOIN inodes AS i ON i.ino = e.ino WHERE {_DIRECTORY})"
            f" SELECT min(ino) FROM inodes WHERE {_DIRECTORY} AND nlink > 0"
            " AND ino NOT IN (SELECT ino FROM reached)"
        )
        found: int | None = rows[0][0]
        return found

    def _find_nameless(self) -> None:
        lost = self._all(f"SELECT ino FROM inodes WHERE NOT {_DIRECTORY} AND nlink > 0 AND {_NAMES} = 0")
        for (ino,) in lost:
            self._put_into_lost_and_found("file-links", ino, b"inode-%d" % ino)

    def _put_into_lost_and_found(self, check: str, ino: int, name: bytes) -> None:
        directory, place = self._lost_and_found()
        while self._all("SELECT 1 FROM entries WHERE parent = ? AND name = ?", directory, name):
            name += b"-again"
        self._execute("INSERT INTO entries VALUES (?, ?, ?)", (directory, name, ino))
        self._execute(
            f"UPDATE inodes SET parent = CASE WHEN {_DIRECTORY} THEN ? ELSE 0 END WHERE ino = ?",
            (directory, ino),
        )
        self._note(check, f"put inode {ino}, which no name led to, to /{place.decode()}/{name.decode()}")

    def _lost_and_found(self) -> tuple[int, bytes]:
        """Return the inode and the name of the directory for what was found; make it if need be."""
        for name in (LOST_AND_FOUND, *(LOST_AND_FOUND + b"-%d" % k for k in range(2, 1000))):
            rows = self._all("SELECT ino FROM entries WHERE parent = ? AND name = ?", ROOT_INODE, name)
            if not rows:
                ino = self._new_inode(0o040700)
                self._execute("UPDATE inodes SET parent = ?, nlink = 2 WHERE ino = ?", (ROOT_INODE, ino))
                self._execute("INSERT INTO entries VALUES (?, ?, ?)", (ROOT_INODE, name, ino))
                self._execute("UPDATE inodes SET nlink = nlink + 1 WHERE ino = ?", (ROOT_INODE,))
                return ino, name
            if self._all(f"SELECT 1 FROM inodes WHERE ino = ? AND {_DIRECTORY}", rows[0][0]):
                return rows[0][0], name
        raise sqlite3.IntegrityError("/lost+found and all its other names are no directories")

    # contents

    def _mend_contents(self) -> None:
        end = "(SELECT max(offset + length) FROM extents WHERE extents.ino = inodes.ino)"
        self._change(
            "symbolic-links",
            "put right the size of a symbolic link",
            "UPDATE inodes SET size = length(target) WHERE target IS NOT NULL AND size != length(target)",
        )
        self._change("extent-size", "removed an extent without bytes", "DELETE FROM extents WHERE length < 1")
        self._change(
            "extent-size",
            "raised the size of a file to the end of its contents",
            f"UPDATE inodes SET size = {end} WHERE {_REGULAR} AND size < {end}",
        )
        self._change(
            "garbage",
            "took a block that is in use for no garbage",
            "DELETE FROM garbage WHERE block IN (SELECT block FROM blocks)",
        )

    def _find_blocks(self) -> None:
        """Make a file of each committed block that no file refers to."""
        lost = self._all(
            "SELECT block, length FROM blocks WHERE block NOT IN (SELECT block FROM extents)"
            " AND length(block) = 16 AND length > 0"
        )
        for block, length in lost:
            ino = self._new_inode(0o100600, length)
            self._execute("INSERT INTO extents VALUES (?, 0, ?, ?, 0)", (ino, length, block))
            self._put_into_lost_and_found("block-references", ino, b"block-" + block.hex().encode())

    def _drop_what_is_of_nobody(self) -> None:
        self._change(
            "xattr-inode",
            "removed the extended attributes of an inode that does not exist",
            "DELETE FROM xattrs WHERE ino NOT IN (SELECT ino FROM inodes)",
        )
        self._change(
            "slot-session",
            "removed the kept answers of a session that has ended",
            "DELETE FROM slots WHERE session NOT IN (SELECT session FROM sessions)",
        )
        if self._all("SELECT 1 FROM sessions LIMIT 1"):
            return
        orphans = self._all(f"SELECT ino FROM inodes WHERE nlink = 0 AND {_NAMES} = 0")
        self._forget_all(ino for (ino,) in orphans)

    def _forget_all(self, orphans: Iterable[int]) -> None:
        for ino in orphans:
            for table in ("extents", "xattrs", "inodes"):
                self._execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))
            self._note("orphans", f"removed inode {ino}, which had no name and was open nowhere")

    # counts

    def _count(self) -> None:
        self._change(
            "file-links",
            "counted the names of a file anew",
            f"UPDATE inodes SET nlink = {_NAMES} WHERE NOT {_DIRECTORY} AND max(nlink, 0) != {_NAMES}",
        )
        links = (
            "(2 + (SELECT count(*) FROM entries AS e JOIN inodes AS c ON c.ino = e.ino"
            " WHERE e.parent = inodes.ino AND (c.mode & 0xF000) = 0x4000))"
        )
        self._change(
            "directory-links",
            "counted the links of a directory anew",
            f"UPDATE inodes SET nlink = {links} WHERE {_DIRECTORY} AND nlink > 0 AND nlink != {links}",
        )
        allocated = "(SELECT coalesce(sum(length), 0) FROM extents WHERE extents.ino = inodes.ino)"
        self._change(
            "allocated-bytes",
            "counted the allocated bytes of a file anew",
            f"UPDATE inodes SET allocated_bytes = {allocated} WHERE allocated_bytes != {allocated}",
        )
        references = "(SELECT count(*) FROM extents WHERE extents.block = blocks.block)"
        self._change(
            "block-references",
            "counted the references to a block anew",
            f"UPDATE blocks SET refs = {references} WHERE refs != {references}",
        )
        self._execute(
            "INSERT INTO garbage SELECT block, length, ? FROM blocks WHERE refs = 0 AND length(block) = 16",
            (self._now_ns,),
        )
        self._execute("DELETE FROM blocks WHERE refs = 0 AND length(block) = 16")
        if self._all("SELECT 1 FROM sqlite_schema WHERE name = 'lag'"):  # older releases had none
            self._execute("DELETE FROM lag WHERE block NOT IN (SELECT block FROM blocks)")
