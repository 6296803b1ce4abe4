"""The write-ahead log on disk: durable on demand, and kept short.

Makes no decision about data. Threading: `LogSync` and `Checkpointer` belong to the event loop; the slow
system calls run in one thread each, and quick syncs in the loop. The log's file carries no POSIX locks, so
a descriptor of our own is safe (one of the database file would not be).
Source: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metaserver import log_failure, pages
from metaserver.log_ahead import LogAhead
from metaserver.log_mark import LogMark
from metaserver.store import LOG_PAGES_MAX, Store
from wire.errors import InternalError
from wire.shared_sync import SharedSync

CHECKPOINT_ROWS = 8000
"""A checkpoint begins when so many rows were changed since the last one."""
LITTLE_ROWS = 64
"""So many rows changed since the last sync are little to write."""

logger = logging.getLogger("metaserver")


class LogSync:
    """Makes everything that was committed so far survive a power loss; callers share one fdatasync.

    With synchronous = NORMAL, SQLite itself syncs the log before it moves pages into the database,
    and the database before it reuses the log: what is not in the synced log is in the synced database.
    """

    def __init__(self, database: Path, changed_rows: Callable[[], int], mark: LogMark) -> None:
        """Open the log of an open database, in which something was read or written already.

        Args:
            database: its file.
            changed_rows: how many rows were changed since the start; called on the event loop.
            mark: where to note how far the log is durable.
        """
        self._mark = mark
        self._database = database.absolute()
        self._name = os.fsencode(self._database)
        self._damaged_frames = pages.damaged_frames(database)
        self._descriptor = os.open(f"{database}-wal", os.O_RDONLY)
        self._thread = ThreadPoolExecutor(1, "log-sync")
        self._changed_rows = changed_rows
        self._rows = 0
        self._shared = SharedSync(self._thread, self._sync, self._is_little)

    async def sync(self) -> None:
        """Return when all that was committed before this call is on disk.

        Raises:
            InternalError: the disk failed. From then on every call raises it (metaserver.log_failure).
                Or the log was met damaged.
        """
        await asyncio.shield(self._shared())

    def _sync(self) -> None:
        if log_failure.reason(self._name) is None:
            committed = self._mark.look()
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                log_failure.note(self._database, str(error.strerror))
            else:
                self._mark.keep(committed)
        if self._damaged_frames:
            raise InternalError(
                "the log of the metadata database is damaged: what comes behind it would be lost at a restart"
            )
        if (why := log_failure.reason(self._name)) is not None:
            raise InternalError(f"the metadata server's disk failed: {why}")

    def _is_little(self) -> bool:
        before, self._rows = self._rows, self._changed_rows()
        return self._rows - before <= LITTLE_ROWS

    def close(self) -> None:
        """Close the descriptor, after what is in flight."""
        self._thread.shutdown()
        os.close(self._descriptor)


class Checkpointer:
    """Moves the log's pages into the database, in a thread with a connection of its own.

    It never makes a transaction wait, and has the log read ahead, so that none waits for that (see
    metaserver.log_ahead). Under a load without any pause the log still grows; from store.LOG_PAGES_MAX on, a
    commit then finishes the (mostly done) work itself, and the log starts over.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._done_rows = store.changed_rows()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._connection: sqlite3.Connection | None = None
        self._ahead = LogAhead(store.path, store.log_mark)
        self._is_saved = False

    async def run_once(self) -> bool:
        """Checkpoint if enough was changed; return whether it did.

        A connection is never opened where the files are not in place. What the log has is moved by the one
        that has the right ones, lest it is lost with the log.
        """
        if not self._store.files.look():
            self._save_log()
            return False
        self._is_saved = False
        changed = self._store.changed_rows()
        if changed - self._done_rows < CHECKPOINT_ROWS:
            self._store.keep_reading(self._is_short())
            return False
        self._store.keep_reading(False)  # a commit must move the log while it is too long and this fails
        await asyncio.get_running_loop().run_in_executor(self._thread, self._checkpoint)
        self._done_rows = changed
        return True

    def _save_log(self) -> None:
        if not self._is_saved:
            self._store.keep_reading(False)
            self._is_saved = self._store.log_mark.retire(self._store.execute)

    def _is_short(self) -> bool:
        durable = self._store.log_mark.look()
        return durable is None or durable.frames < LOG_PAGES_MAX

    async def run_forever(self, interval_seconds: float = 0.1) -> None:
        """Checkpoint whenever it is time, until cancelled. A failure is logged once and tried again."""
        failing = False
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                self._ahead.look()
                await self.run_once()
                failing = False
            except (sqlite3.Error, OSError) as error:
                if not failing:
                    logger.error("the log could not be moved into the database: %s", error)
                failing = True

    def _checkpoint(self) -> None:
        if self._connection is None:
            self._connection = pages.connect(self._store.path, isolation_level=None)
            self._connection.execute("PRAGMA synchronous = NORMAL")
        self._store.log_mark.checkpoint(self._connection.execute)

    def close(self) -> None:
        """Close the connection, in its own thread, after what is in flight."""
        if self._connection is not None:
            self._thread.submit(self._connection.close).result()
        self._thread.shutdown()
        self._ahead.close()
