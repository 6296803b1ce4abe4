"""What must hold in the whole database: one named check an invariant, as a query for what breaks it.

Reads only. Works on any connection to a database of this format, in any one thread; takes time in
proportion to the size of the database. `snapshot` gives a connection that sees one moment of a database
in use, and keeps nobody from changing it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from metaserver import pages

FINDINGS_MAX = 100
"""So many rows of each check are told."""

MayBeOpen = Callable[[int], bool]
Watch = Callable[[str, int, int], None]
"""Told before each check: its name, how many are done, how many there are."""

_IS_DIRECTORY = "(mode & 0xF000) = 0x4000"
_IS_REGULAR = "(mode & 0xF000) = 0x8000"
_IS_LINK = "(mode & 0xF000) = 0xA000"


class Check(NamedTuple):
    """One invariant: its name, the rule in words, and the query for the rows that break it."""

    name: str
    rule: str
    query: str


class Finding(NamedTuple):
    """A row that breaks a check's rule, by the names of its columns."""

    check: str
    row: dict[str, Any]


DATABASE = Check(
    "database", "the database file and its indexes are whole", f"PRAGMA integrity_check({FINDINGS_MAX})"
)

CHECKS = (
    Check(
        "root",
        "the root is a directory, its own parent, and without a name",
        f"""
        SELECT 1 AS ino WHERE NOT EXISTS
            (SELECT 1 FROM inodes WHERE ino = 1 AND parent = 1 AND {_IS_DIRECTORY})
        UNION ALL SELECT ino FROM entries WHERE ino = 1""",
    ),
    Check(
        "entry-directory",
        "an entry lies in a directory that was not removed",
        f"""
        SELECT parent, name FROM entries WHERE parent NOT IN
        (SELECT ino FROM inodes WHERE nlink > 0 AND {_IS_DIRECTORY})""",
    ),
    Check(
        "entry-inode",
        "an entry names an inode",
        """
        SELECT parent, name, ino FROM entries WHERE ino NOT IN (SELECT ino FROM inodes)""",
    ),
    Check(
        "names",
        "a name has 1 to 255 bytes, no slash and no NUL, and is not . or ..",
        """
        SELECT parent, name FROM entries WHERE length(name) NOT BETWEEN 1 AND 255
        OR instr(name, x'2F') OR instr(name, x'00') OR name IN (x'2E', x'2E2E')""",
    ),
    Check(
        "file-links",
        "a file has as many links as names",
        f"""
        SELECT ino, nlink FROM inodes AS i WHERE NOT {_IS_DIRECTORY}
        AND max(nlink, 0) != (SELECT count(*) FROM entries AS e WHERE e.ino = i.ino)""",
    ),
    Check(
        "directory-links",
        "a directory has two links and one for each subdirectory",
        f"""
        SELECT ino, nlink FROM inodes AS i WHERE {_IS_DIRECTORY} AND nlink > 0
        AND nlink != 2 + (SELECT count(*) FROM entries AS e JOIN inodes AS c ON c.ino = e.ino
            WHERE e.parent = i.ino AND (c.mode & 0xF000) = 0x4000)""",
    ),
    Check(
        "directory-name",
        "a directory has one name, in its parent",
        f"""
        SELECT ino, parent FROM inodes AS i WHERE {_IS_DIRECTORY} AND nlink > 0 AND ino != 1
        AND (SELECT count(*) || ' ' || coalesce(max(e.parent), 0) FROM entries AS e WHERE e.ino = i.ino)
            != '1 ' || parent""",
    ),
    Check(
        "removed-directory",
        "a removed directory has no name",
        f"""
        SELECT i.ino, e.parent, e.name FROM inodes AS i JOIN entries AS e ON e.ino = i.ino
        WHERE {_IS_DIRECTORY} AND nlink <= 0""",
    ),
    Check(
        "tree",
        "a directory is reached from the root",
        f"""
        WITH RECURSIVE reached (ino) AS (SELECT 1 UNION SELECT i.ino FROM reached AS r
            JOIN entries AS e ON e.parent = r.ino JOIN inodes AS i ON i.ino = e.ino
            WHERE {_IS_DIRECTORY})
        SELECT ino FROM inodes WHERE {_IS_DIRECTORY} AND nlink > 0
        AND ino NOT IN (SELECT ino FROM reached)""",
    ),
    Check(
        "inode-counter",
        "an inode's number is below the counter",
        """
        SELECT ino FROM inodes WHERE ino >= (SELECT next FROM counters WHERE name = 'inode')""",
    ),
    Check(
        "symbolic-links",
        "a symbolic link has a target of its size, and nothing else has one",
        f"""
        SELECT ino, target FROM inodes WHERE ({_IS_LINK}) != (target IS NOT NULL)
        OR (target IS NOT NULL AND length(target) != size)""",
    ),
    Check(
        "extent-size",
        "an extent is of a regular file, and within its size",
        f"""
        SELECT e.ino, e.offset, e.length FROM extents AS e LEFT JOIN inodes AS i ON i.ino = e.ino
        WHERE i.ino IS NULL OR NOT {_IS_REGULAR} OR e.offset < 0 OR e.length < 1
        OR e.offset + e.length > i.size""",
    ),
    Check(
        "extent-overlap",
        "extents of a file do not overlap",
        """
        SELECT ino, offset FROM (SELECT ino, offset, lag(offset + length) OVER
            (PARTITION BY ino ORDER BY offset) AS reached FROM extents) WHERE offset < reached""",
    ),
    Check(
        "extent-block",
        "an extent lies within a committed block",
        """
        SELECT e.ino, e.offset, hex(e.block) AS block FROM extents AS e
        LEFT JOIN blocks AS b ON b.block = e.block
        WHERE b.block IS NULL OR e.block_offset < 0 OR e.block_offset + e.length > b.length""",
    ),
    Check(
        "allocated-bytes",
        "a file's allocated bytes are those of its extents",
        """
        SELECT ino, allocated_bytes FROM inodes AS i WHERE allocated_bytes !=
        (SELECT coalesce(sum(length), 0) FROM extents AS e WHERE e.ino = i.ino)""",
    ),
    Check(
        "block-references",
        "a block is counted as often as extents refer to it, and at least once",
        """
        SELECT hex(block) AS block, refs FROM blocks AS b
        WHERE refs != (SELECT count(*) FROM extents AS e WHERE e.block = b.block) OR refs < 1""",
    ),
    Check(
        "block-records",
        "a block's id has 16 bytes, its witness 32",
        """
        SELECT hex(block) AS block FROM blocks
        WHERE length(block) != 16 OR length(digest) != 32 OR length < 1""",
    ),
    Check(
        "garbage",
        "a block that is committed is no garbage",
        """
        SELECT hex(block) AS block FROM garbage WHERE block IN (SELECT block FROM blocks)""",
    ),
    Check(
        "xattr-inode",
        "an extended attribute is of an inode",
        """
        SELECT ino, name FROM xattrs WHERE ino NOT IN (SELECT ino FROM inodes)""",
    ),
    Check(
        "slot-session",
        "a slot is of a living session",
        """
        SELECT session, slot FROM slots WHERE session NOT IN (SELECT session FROM sessions)""",
    ),
    Check(
        "session-counter",
        "the number of a session, and of one that wrote a block, is below the counter",
        """
        WITH known (session) AS (SELECT printf('%016X', session) FROM sessions
            UNION ALL SELECT substr(hex(max(block)), 1, 16) FROM blocks
            UNION ALL SELECT substr(hex(max(block)), 1, 16) FROM garbage)
        SELECT session FROM known
        WHERE session >= (SELECT printf('%016X', next) FROM counters WHERE name = 'session')""",
    ),
    Check(
        "orphans",
        "an inode without a name is one that a session may have open",
        "SELECT ino FROM inodes WHERE nlink = 0 AND NOT may_be_open(ino)",
    ),
)


def snapshot(database: Path) -> sqlite3.Connection:
    """Return a read-only connection that sees the database as it is now, until it is closed.

    While it is open the write-ahead log cannot start over, and grows. The connection may be handed over
    to another thread.
    """
    connection = pages.connect(database, read_only=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM facts").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def check(
    connection: sqlite3.Connection,
    may_be_open: MayBeOpen | None = None,
    watch: Watch = lambda name, done, total: None,
) -> list[Finding]:
    """Return what is wrong with a database, nothing if all is well.

    Args:
        connection: to the database.
        may_be_open: tells whether a session may have an inode open; without it, any session may any.
        watch: told how far the work is.

    Raises:
        sqlite3.DatabaseError: it cannot even be read.
    """
    if may_be_open is None:
        (sessions,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
        connection.create_function("may_be_open", 1, lambda ino: sessions)
    else:
        connection.create_function("may_be_open", 1, may_be_open)
    watch(DATABASE.name, 0, len(CHECKS) + 1)
    rows = connection.execute(DATABASE.query).fetchall()
    findings = [Finding(DATABASE.name, {"message": row[0]}) for row in rows if row != ("ok",)]
    for done, (name, _, query) in enumerate(CHECKS, start=1):
        watch(name, done, len(CHECKS) + 1)
        cursor = connection.execute(query)
        columns = [column[0] for column in cursor.description]
        found = cursor.fetchmany(FINDINGS_MAX)
        findings.extend(Finding(name, dict(zip(columns, row, strict=True))) for row in found)
    return findings
