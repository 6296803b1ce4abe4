"""SQLite's connection that writes, which may keep a read open from one transaction to the next.

SQLite takes and gives back its locks for reading with each transaction, and with each query outside of one:
a system call each, five in a transaction. While a statement is half read, it need not. As this connection is
the only one that writes, it sees the newest there is all the same. But the log cannot be begun over while it
reads, nor is what is written from then on moved out of the log; and after a failed write, SQLite looks at the
disk anew only when nobody reads any more. So who has the log moved, or meets an error, ends the reading.
Decides nothing. In the thread that opened it. Source: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import sqlite3


class ReadingConnection(sqlite3.Connection):
    """A connection that may keep a read open.

    Attributes:
        reading: the statement that is half read, if there is one.
        may_read: whether one may be kept open: nobody moves the log, nor must.
    """

    reading: sqlite3.Cursor | None = None
    may_read = True

    def begin_reading(self) -> None:
        """Keep a read open from now on, if that may be. Not to be called while one is open."""
        if self.may_read:
            self.reading = self.execute("SELECT 1 FROM sqlite_schema")

    def end_reading(self) -> None:
        """Let the log be moved into the database, until a read is kept open again."""
        if self.reading is not None:
            self.reading.close()
            self.reading = None

    def keep_reading(self, may: bool) -> None:
        """Say whether a read may be kept open from now on: not while the log is moved, or must be."""
        self.may_read = may
        if not may:
            self.end_reading()

    def close(self) -> None:
        """Close it; what is half read would leave the files open."""
        self.end_reading()
        super().close()
