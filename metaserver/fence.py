"""The fence of a database that is an older one: no number is given twice, nothing newer is deleted.

An older state of the database knows nothing of what came after it. Without a fence it would give the numbers
of later sessions again, so that two blocks had the same id; it would hold the blocks that later sessions
wrote, or sessions that went on, for what nobody needs; and mounts would take what they remember of a file for
its present contents. `put_up` is called inside of the transaction that makes a copy the database,
`put_up_late` when it turns out that one was put back by hand, and `release` when people need nothing of the
newer blocks. It must not open a database. One thread.
"""

from __future__ import annotations

import secrets
import sqlite3
from typing import NamedTuple

from metaserver.schema import ADDED_SCHEMA

LEAST_JUMP = 2**44
"""Numbers go on so far above the copy's at least; no counter grew so much since it was made."""
LEAST_SKIP = 2**20
"""Each start goes on with sessions so far above, at least: it gives fewer. A jump is millions of these."""
NUMBER_LIMIT = 2**62
"""A higher number was never given: it is damage."""
OLDER_FACT = "found_older_ns"
"""Until its fences are released, a database that was found to be an older one says when that was."""


class Given(NamedTuple):
    """The next numbers of a database, and the highest version of a file; 0 where nobody knows."""

    session: int = 0
    inode: int = 0
    epoch: int = 0
    milestone: int = 0
    version: int = 0


NOTHING = Given()


class Fence(NamedTuple):
    """What is kept: blocks of sessions from `first_session` to below `next_session`, and of `living`."""

    first_session: int
    next_session: int
    living: list[int]

    def covers(self, session: int) -> bool:
        """Tell whether a session may have written blocks that the copy does not know."""
        return self.first_session <= session < self.next_session or session in self.living


def draw_jump() -> int:
    """Return how far numbers go on: another one each time that a copy is put back, whatever the date."""
    return LEAST_JUMP + secrets.randbelow(LEAST_JUMP)


def number_after(copied: int, known: int, jump: int, now_ns: int) -> int:
    """Return a number above every one that was given since a copy was made.

    Args:
        copied: the copy's next number.
        known: a number that was perhaps given since (0: none is known).
        jump: what `draw_jump` gave.
        now_ns: the date. While it is right, a database that is put back twice from the same copy gets higher
            numbers the second time, as no counter grows by a million in a second.
    """
    return max(copied + jump, known + 1 if known < NUMBER_LIMIT else 0, now_ns // 1000)


def given(connection: sqlite3.Connection) -> Given:
    """Return what a database has given last. Raises sqlite3.Error."""
    counters = dict(connection.execute("SELECT name, next FROM counters"))
    (version,) = connection.execute("SELECT max(version) FROM inodes").fetchone()
    return Given(
        counters["session"],
        counters["inode"],
        counters.get("epoch", 0),
        counters.get("milestone", 0),
        version or 0,
    )


def put_up(connection: sqlite3.Connection, now_ns: int, known: Given = NOTHING) -> Fence:
    """Fence a copy that is to be the database. Only inside of a transaction.

    All sessions end, so that open mounts begin new ones; the numbers of sessions, inodes and versions go on
    above all that were given.

    Args:
        connection: to the copy.
        now_ns: the date.
        known: numbers that were perhaps given since the copy was made.
    """
    for statement in filter(None, map(str.strip, ADDED_SCHEMA.split(";"))):
        connection.execute(statement)
    living = [session for (session,) in connection.execute("SELECT session FROM sessions ORDER BY session")]
    first = given(connection).session
    fence = Fence(first, _go_on(connection, now_ns, known), living)
    rows = [(first, fence.next_session - 1), *((session, session) for session in living)]
    connection.executemany("INSERT OR REPLACE INTO fences VALUES (?, ?, ?)", [(*row, now_ns) for row in rows])
    connection.execute("DELETE FROM facts WHERE name = ?", (OLDER_FACT,))  # it is known, and was meant
    return fence


def put_up_late(connection: sqlite3.Connection, now_ns: int, milestone: int) -> None:
    """Fence a database that is found to be older than data servers know. Only inside of a transaction.

    It may have been in use since it was put back, so that nobody knows which sessions were given at that
    time: all are fenced.

    Args:
        connection: to the database.
        now_ns: the date.
        milestone: the highest one that data servers have kept.
    """
    next_session = _go_on(connection, now_ns, Given(milestone=milestone))
    connection.execute("INSERT OR REPLACE INTO fences VALUES (1, ?, ?)", (next_session - 1, now_ns))
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (OLDER_FACT, str(now_ns)))


def _go_on(connection: sqlite3.Connection, now_ns: int, known: Given) -> int:
    """End all sessions and raise all numbers above what was given; return the next session's."""
    copied, jump = given(connection), draw_jump()
    after = Given(*(number_after(*numbers, jump, now_ns) for numbers in zip(copied, known, strict=True)))
    connection.execute("INSERT INTO restorations VALUES (?)", (now_ns,))
    for name in ("session", "inode", "epoch", "milestone"):
        connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, getattr(after, name)))
    connection.execute("UPDATE inodes SET version = ?", (after.version,))
    connection.execute("DELETE FROM slots")
    connection.execute("DELETE FROM sessions")
    return after.session


def skip_sessions(connection: sqlite3.Connection, now_ns: int) -> None:
    """Let session numbers go on far above, and fence those between. Only inside of a transaction, at a start.

    In an older database that was put back by hand, and is not found out, those are numbers that were given.
    """
    (first,) = connection.execute("SELECT next FROM counters WHERE name = 'session'").fetchone()
    after = first + LEAST_SKIP + secrets.randbelow(LEAST_SKIP)
    connection.execute("UPDATE counters SET next = ? WHERE name = 'session'", (after,))
    grown = connection.execute("UPDATE fences SET last = ? WHERE last = ?", (after - 1, first - 1))
    if not grown.rowcount:  # else no session began in the last run
        connection.execute("INSERT INTO fences VALUES (?, ?, ?)", (first, after - 1, now_ns))


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
    connection.execute("DELETE FROM facts WHERE name = ?", (OLDER_FACT,))
    return connection.execute("DELETE FROM fences").rowcount
