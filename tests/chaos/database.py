"""SQLite on both mounts: transfers that keep the sum, each noted in its transaction; integrity_check.

SQLite says "malformed" also of a database of which it could not read a page (EIO). So while things are broken
that counts as refused, and as wrong in the end; a sum or an index that is wrong counts at once.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.chaos.calls import Calls
from tests.chaos.work import Work

ACCOUNTS, SUM = 10, 1000
BUSY_SECONDS = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS account (number INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS transfer (process INTEGER, number INTEGER, PRIMARY KEY (process, number));
"""


class DatabaseWork(Work):
    """Each process uses the same database by its own mount."""

    name = "database"

    def __init__(self, mounts: list[Path], number: int, seed: int, calls: Calls) -> None:
        super().__init__(mounts, number, seed, calls)
        self._next = 0
        self._acknowledged: set[int] = set()
        with closing(self._connect(self.own)) as connection:
            connection.executescript(SCHEMA)
            connection.execute("BEGIN IMMEDIATE")
            for account in range(ACCOUNTS):
                row = (account, SUM // ACCOUNTS)
                connection.execute("INSERT OR IGNORE INTO account VALUES (?, ?)", row)
            connection.execute("COMMIT")

    def step(self) -> None:
        number, self._next = self._next, self._next + 1
        try:
            with self.calls.timed("transaction", "transfer"), closing(self._connect(self.own)) as connection:
                self._transfer(connection, number)
            if self.dice.random() < 0.1:
                with closing(self._connect(self.own)) as connection:
                    self._compare(connection)
        except sqlite3.OperationalError as error:
            # Busy, no disk, no quorum: a refusal, which SQLite rolls back.
            raise OSError(0, f"SQLite: {error}") from None
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT:
                raise OSError(0, f"SQLite: {error}") from None
            self.calls.is_wrong(f"SQLite: {error}")

    def check(self) -> None:
        for mount in (self.own, self.other):
            try:
                with closing(self._connect(mount)) as connection:
                    self._compare(connection)
            except sqlite3.OperationalError as error:
                raise OSError(0, f"SQLite: {error}") from None
            except sqlite3.DatabaseError as error:
                self.calls.is_wrong(f"SQLite: {error}")

    def _connect(self, mount: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(mount / "bank.sqlite", timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _transfer(self, connection: sqlite3.Connection, number: int) -> None:
        one, other = self.dice.sample(range(ACCOUNTS), 2)
        amount = self.dice.randint(1, 20)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE account SET amount = amount - ? WHERE number = ?", (amount, one))
        connection.execute("UPDATE account SET amount = amount + ? WHERE number = ?", (amount, other))
        connection.execute("INSERT INTO transfer VALUES (?, ?)", (self.number, number))
        connection.execute("COMMIT")
        self._acknowledged.add(number)
        self.calls.completed(self.name)

    def _compare(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        (total,) = connection.execute("SELECT sum(amount) FROM account").fetchone()
        query = "SELECT number FROM transfer WHERE process = ?"
        there = {number for (number,) in connection.execute(query, (self.number,))}
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        connection.execute("COMMIT")
        if total != SUM:
            self.calls.is_wrong(f"SQLite: the sum is {total}, not {SUM}")
        if verdict != "ok":
            self.calls.is_wrong(f"SQLite: integrity_check: {verdict}")
        if lacking := sorted(self._acknowledged - there):
            self.calls.is_lost(f"SQLite: transfers of {self.number}: {lacking[:10]} ({len(lacking)})")
        self.calls.checked(8 * len(there))
