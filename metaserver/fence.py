"""The fence of a database that was put back from a copy: no number is given twice, nothing newer is deleted.

An older state of the database knows nothing of what came after it. Without a fence it would give the numbers
of later sessions again, so that two blocks had the same id; it would hold the blocks that later sessions
wrote, or sessions that went on, for what nobody needs; and mounts would take what they remember of a file for
its present contents. `put_up` is called inside of the transaction that makes a copy the database, and
`release` when people need nothing of the newer blocks. It must not open a database. One thread.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from metaserver.schema import ADDED_SCHEMA

JUMP = 2**32
"""Numbers go on so far above the copy's at least, however the clock stands."""
NUMBER_LIMIT = 2**62
"""A higher number was never given: it is damage."""


class Fence(NamedTuple):
    """What is kept: blocks of sessions from `first_session` to below `next_session`, and of `living`."""

    first_session: int
    next_session: int
    living: list[int]

    def covers(self, session: int) -> bool:
        """Tell whether a session may have written blocks that the copy does not know."""
        return self.first_session <= session < self.next_session or session in self.living


def number_after(copied: int, known: int, now_ns: int) -> int:
    """Return a number above every one that was given since a copy was made.

    Args:
        copied: the copy's next number.
        known: a number that was perhaps given since (0: none is known).
        now_ns: the clock. A database that is put back twice from the same copy gets different numbers: no
            counter grows by a million in a second.
    """
    return max(copied + JUMP, known + 1 if known < NUMBER_LIMIT else 0, now_ns // 1000)


def put_up(connection: sqlite3.Connection, now_ns: int, known_session: int = 0) -> Fence:
    """Fence a copy that is to be the database. Only inside of a transaction.

    All sessions end, so that open mounts begin new ones; the numbers of sessions, inodes and versions go on
    above all that were given.

    Args:
        connection: to the copy.
        now_ns: the clock.
        known_session: the highest session whose blocks were seen somewhere, 0 if nobody looked.
    """
    for statement in filter(None, map(str.strip, ADDED_SCHEMA.split(";"))):
        connection.execute(statement)
    living = [session for (session,) in connection.execute("SELECT session FROM sessions ORDER BY session")]
    counters = dict(connection.execute("SELECT name, next FROM counters"))
    first = counters["session"]
    fence = Fence(first, number_after(first, known_session, now_ns), living)
    rows = [(first, fence.next_session - 1), *((session, session) for session in living)]
    connection.executemany("INSERT OR REPLACE INTO fences VALUES (?, ?, ?)", [(*row, now_ns) for row in rows])
    connection.execute("INSERT INTO restorations VALUES (?)", (now_ns,))
    connection.execute("UPDATE counters SET next = ? WHERE name = 'session'", (fence.next_session,))
    connection.execute(
        "UPDATE counters SET next = ? WHERE name = 'inode'", (number_after(counters["inode"], 0, now_ns),)
    )
    connection.execute("UPDATE inodes SET version = max(version + ?, ?)", (JUMP, now_ns // 1000))
    connection.execute("DELETE FROM slots")
    connection.execute("DELETE FROM sessions")
    return fence


def put_up_before(connection: sqlite3.Connection, now_ns: int) -> int:
    """Fence all that is older than a new database; return its first session. Only inside of a transaction.

    The data servers may hold the blocks of one that was lost, of which nobody should be the less sure that
    it can be rebuilt because this one was begun in its place.
    """
    first = max(2, now_ns // 1000)
    connection.execute("INSERT INTO fences VALUES (1, ?, ?)", (first - 1, now_ns))
    return first


def release(connection: sqlite3.Connection) -> int:
    """Let go what all fences keep: it is garbage then. Return how many fences there were."""
    return connection.execute("DELETE FROM fences").rowcount
