"""What must hold in the whole database, as queries that return what does not. Reads only.

Each query tells one rule and returns the rows that break it. Works on any connection to a database of
this format, in any one thread; takes time in proportion to the size of the database.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

FINDINGS_MAX = 100
"""So many rows of each rule are told."""

_IS_DIRECTORY = "(mode & 0xF000) = 0x4000"
_IS_REGULAR = "(mode & 0xF000) = 0x8000"
_IS_LINK = "(mode & 0xF000) = 0xA000"

RULES = {
    "the root is a directory, its own parent, and without a name": f"""
        SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inodes WHERE ino = 1 AND parent = 1 AND {_IS_DIRECTORY})
        UNION ALL SELECT ino FROM entries WHERE ino = 1""",
    "an entry lies in a directory that was not removed": f"""
        SELECT parent, name FROM entries WHERE parent NOT IN
        (SELECT ino FROM inodes WHERE nlink > 0 AND {_IS_DIRECTORY})""",
    "an entry names an inode": """
        SELECT parent, name, ino FROM entries WHERE ino NOT IN (SELECT ino FROM inodes)""",
    "a name has 1 to 255 bytes, no slash and no NUL, and is not . or ..": """
        SELECT parent, name FROM entries WHERE length(name) NOT BETWEEN 1 AND 255
        OR instr(name, x'2F') OR instr(name, x'00') OR name IN (x'2E', x'2E2E')""",
    "a file has as many links as names": f"""
        SELECT ino, nlink FROM inodes AS i WHERE NOT {_IS_DIRECTORY}
        AND max(nlink, 0) != (SELECT count(*) FROM entries AS e WHERE e.ino = i.ino)""",
    "a directory has two links and one for each subdirectory": f"""
        SELECT ino, nlink FROM inodes AS i WHERE {_IS_DIRECTORY} AND nlink > 0
        AND nlink != 2 + (SELECT count(*) FROM entries AS e JOIN inodes AS c ON c.ino = e.ino
            WHERE e.parent = i.ino AND (c.mode & 0xF000) = 0x4000)""",
    "a directory has one name, in its parent": f"""
        SELECT ino, parent FROM inodes AS i WHERE {_IS_DIRECTORY} AND nlink > 0 AND ino != 1
        AND (SELECT count(*) || ' ' || coalesce(max(e.parent), 0) FROM entries AS e WHERE e.ino = i.ino)
            != '1 ' || parent""",
    "a removed directory has no name": f"""
        SELECT i.ino, e.parent, e.name FROM inodes AS i JOIN entries AS e ON e.ino = i.ino
        WHERE {_IS_DIRECTORY} AND nlink <= 0""",
    "a directory is reached from the root": f"""
        WITH RECURSIVE reached (ino) AS (SELECT 1 UNION SELECT i.ino FROM reached AS r
            JOIN entries AS e ON e.parent = r.ino JOIN inodes AS i ON i.ino = e.ino
            WHERE {_IS_DIRECTORY})
        SELECT ino FROM inodes WHERE {_IS_DIRECTORY} AND nlink > 0
        AND ino NOT IN (SELECT ino FROM reached)""",
    "an inode's number is below the counter": """
        SELECT ino FROM inodes WHERE ino >= (SELECT next FROM counters WHERE name = 'inode')""",
    "a symbolic link has a target of its size, and nothing else has one": f"""
        SELECT ino, target FROM inodes WHERE ({_IS_LINK}) != (target IS NOT NULL)
        OR (target IS NOT NULL AND length(target) != size)""",
    "an extent is of a regular file, and within its size": f"""
        SELECT e.ino, e.offset, e.length FROM extents AS e LEFT JOIN inodes AS i ON i.ino = e.ino
        WHERE i.ino IS NULL OR NOT {_IS_REGULAR} OR e.offset < 0 OR e.length < 1
        OR e.offset + e.length > i.size""",
    "extents of a file do not overlap": """
        SELECT ino, offset FROM (SELECT ino, offset, lag(offset + length) OVER
            (PARTITION BY ino ORDER BY offset) AS reached FROM extents) WHERE offset < reached""",
    "an extent lies within a committed block": """
        SELECT e.ino, e.offset, hex(e.block) FROM extents AS e LEFT JOIN blocks AS b ON b.block = e.block
        WHERE b.block IS NULL OR e.block_offset < 0 OR e.block_offset + e.length > b.length""",
    "a file's allocated bytes are those of its extents": """
        SELECT ino, allocated_bytes FROM inodes AS i WHERE allocated_bytes !=
        (SELECT coalesce(sum(length), 0) FROM extents AS e WHERE e.ino = i.ino)""",
    "a block is counted as often as extents refer to it, and at least once": """
        SELECT hex(block), refs FROM blocks AS b
        WHERE refs != (SELECT count(*) FROM extents AS e WHERE e.block = b.block) OR refs < 1""",
    "a block's id has 16 bytes, its witness 32": """
        SELECT hex(block) FROM blocks WHERE length(block) != 16 OR length(digest) != 32 OR length < 1""",
    "a block that is committed is no garbage": """
        SELECT hex(block) FROM garbage WHERE block IN (SELECT block FROM blocks)""",
    "an extended attribute is of an inode": """
        SELECT ino, name FROM xattrs WHERE ino NOT IN (SELECT ino FROM inodes)""",
    "a slot is of a living session": """
        SELECT session, slot FROM slots WHERE session NOT IN (SELECT session FROM sessions)""",
    "a session's number is below the counter": """
        SELECT session FROM sessions WHERE session >= (SELECT next FROM counters WHERE name = 'session')""",
}


class Finding(NamedTuple):
    """A rule that does not hold, and one row that breaks it."""

    rule: str
    row: tuple[object, ...]


def check(connection: sqlite3.Connection) -> list[Finding]:
    """Return what is wrong with a database, nothing if all is well.

    Raises:
        sqlite3.DatabaseError: it cannot even be read.
    """
    findings = [
        Finding("the database file is whole", row)
        for row in connection.execute(f"PRAGMA integrity_check({FINDINGS_MAX})").fetchall()
        if row != ("ok",)
    ]
    for rule, query in RULES.items():
        rows = connection.execute(query).fetchmany(FINDINGS_MAX)
        findings.extend(Finding(rule, row) for row in rows)
    return findings
