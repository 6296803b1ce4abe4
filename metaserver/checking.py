"""Checks of a database in use: one at a time, in a thread, on a snapshot of its own.

Decides nothing about what is right (metaserver.check). `begin` and `progress` belong to the event loop's
thread; the check itself sees only its snapshot and what sessions had open at the same moment.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field
from typing import Any

from metaserver.check import CHECKS, Finding, check, snapshot
from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.errors import Busy, NotFound


@dataclass
class Progress:
    """How far a check is. Each field is written by the check's thread in one step, `state` last."""

    number: int
    state: str = "running"
    checking: str = ""
    done: int = 0
    total: int = len(CHECKS) + 1
    error: str = ""
    findings: list[Finding] = field(default_factory=list)

    def watch(self, name: str, done: int, total: int) -> None:
        """Note which check is running."""
        self.checking, self.done, self.total = name, done, total

    def as_data(self) -> dict[str, Any]:
        """Return this as plain data."""
        told = self.findings if self.state == "done" else []
        return {
            "state": self.state,
            "checking": self.checking,
            "done": self.done,
            "total": self.total,
            "error": self.error,
            "findings": [{"check": finding.check, "row": finding.row} for finding in told],
        }


class Checking:
    """The newest check of this server."""

    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions
        self._newest = Progress(0, state="done")
        self._connection: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> int:
        """Begin a check of the database as it is now; return its number. Raises Busy while one runs."""
        if self._newest.state == "running":
            raise Busy("another check is running; try again when it has ended")
        self._store.files.require()
        self._connection = connection = self._store.read(snapshot, self._store.path)
        held = self._sessions.held()
        self._newest = progress = Progress(self._newest.number + 1)
        self._thread = threading.Thread(
            target=self._run, args=(connection, held, progress), name="check", daemon=True
        )
        self._thread.start()
        return progress.number

    @staticmethod
    def _run(connection: sqlite3.Connection, held: frozenset[int] | None, progress: Progress) -> None:
        try:
            progress.findings = check(connection, lambda ino: held is None or ino in held, progress.watch)
            progress.done, progress.state = progress.total, "done"
        except sqlite3.Error as error:
            progress.error, progress.state = str(error), "failed"
        finally:
            connection.close()

    def progress(self, number: int) -> dict[str, Any]:
        """Tell how far a check is. Raises NotFound unless it is the newest."""
        if number != self._newest.number or not number:
            raise NotFound(f"there is no check {number} (any more)")
        return self._newest.as_data()

    def close(self) -> None:
        """End a check that is running."""
        if self._connection is not None and self._newest.state == "running":
            self._connection.interrupt()
        if self._thread is not None:
            self._thread.join()
