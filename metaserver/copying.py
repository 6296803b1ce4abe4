"""Copies of a database in use: one at a time, made in a thread from a snapshot, then read piece by piece.

The newest copy lies in the metadata server's directory until it is dropped, the next one is begun, or the
server ends. It knows nothing of where a copy goes. `begin`, `progress` and `drop` belong to the event loop's
thread; the thread that copies sees only its snapshot.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaserver import copies, pages
from metaserver.check import snapshot
from metaserver.page_check import first_damage
from metaserver.store import Store
from wire.errors import Busy, InvalidArgument, NoSpace, NotFound

PIECE_BYTES_MAX = 1024 * 1024
READING_SECONDS = 30.0
"""Who reads a copy is not disturbed by the next one, unless nothing was read for so long."""


class _Stopped(Exception):
    """The server ends."""


@dataclass
class Progress:
    """How far a copy is. Written by the copying thread, `state` last."""

    number: int
    changes: str = ""
    state: str = "running"
    done: int = 0
    total: int = 0
    size: int = 0
    copied_ns: int = 0
    error: str = ""

    def watch(self, doing: str, done: int, total: int) -> None:
        """Note how many pages are copied."""
        self.done, self.total = done, total


class Copying:
    """The newest copy of this server's database."""

    def __init__(self, store: Store, reserve_bytes: int) -> None:
        self._store = store
        self._reserve_bytes = reserve_bytes
        self._place = store.path.with_name(store.path.name + ".copy")
        self._thread = ThreadPoolExecutor(1, "copy")
        self._newest = Progress(0, state="dropped")
        self._used = float("-inf")
        self._epoch = store.now_ns()
        self._closing = False
        self._remove()

    def _remove(self) -> None:
        for path in self._place.parent.glob(self._place.name + "*"):
            path.unlink(missing_ok=True)

    def changes(self) -> str:
        """Return what is another text once anything was changed."""
        return f"{self._epoch}-{self._store.changed_rows()}"

    def begin(self) -> int:
        """Begin a copy of the database as it is now; return its number.

        Raises:
            Busy: another one is being made, or read.
            NoSpace: the disk would be full.
        """
        reading = self._newest.state == "done" and time.monotonic() - self._used < READING_SECONDS
        if self._newest.state == "running" or reading:
            raise Busy("another copy is being made or read; try again when that has ended")
        self._remove()
        self._require_room()
        self._store.files.require()
        connection = self._store.read(snapshot, self._store.path)
        self._newest = progress = Progress(self._newest.number + 1, self.changes())
        self._thread.submit(self._run, connection, progress, self._store.now_ns())
        return progress.number

    def _require_room(self) -> None:
        (count,) = self._store.execute("PRAGMA page_count").fetchone()
        if self._store.free_bytes() < count * pages.PAGE_BYTES + self._reserve_bytes:
            raise NoSpace(
                "the metadata server's disk has no room for a copy of its database; make room there"
            )

    def _run(self, connection: sqlite3.Connection, progress: Progress, now_ns: int) -> None:
        def watch(doing: str, done: int, total: int) -> None:
            if self._closing:
                raise _Stopped
            progress.watch(doing, done, total)

        try:
            with closing(connection):
                copies.write(connection, self._place, now_ns, watch)
            with closing(pages.connect(self._place, read_only=True)) as made:
                if found := first_damage(made):
                    raise sqlite3.DatabaseError(found)
            progress.size, progress.copied_ns = self._place.stat().st_size, now_ns
            self._used = time.monotonic()
            progress.state = "done"
        except (sqlite3.Error, OSError, _Stopped) as error:
            with suppress(OSError):  # the next copy tries again, and says why
                self._remove()
            progress.error, progress.state = str(error) or "the metadata server ends", "failed"

    def progress(self, number: int) -> dict[str, Any]:
        """Tell how far a copy is. Raises NotFound unless it is the newest."""
        newest = self._require(number)
        return {
            "state": newest.state,
            "done": newest.done,
            "total": newest.total,
            "bytes": newest.size,
            "copied_ns": newest.copied_ns,
            "changes": newest.changes,
            "error": newest.error,
        }

    def _require(self, number: int) -> Progress:
        if number != self._newest.number or self._newest.state == "dropped":
            raise NotFound(f"there is no copy {number} (any more)")
        return self._newest

    async def read(self, number: int, offset: int, length: int) -> bytes:
        """Return a piece of a copy that is done, shorter at its end. Raises NotFound, InvalidArgument."""
        if self._require(number).state != "done":
            raise NotFound(f"copy {number} is not done")
        if offset < 0 or not 0 < length <= PIECE_BYTES_MAX:
            raise InvalidArgument(f"a piece has 1 to {PIECE_BYTES_MAX} bytes")
        self._used = time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, _piece, self._place, offset, length
        )

    def drop(self, number: int) -> None:
        """Remove a copy that is not needed any more; one that is not there is no error."""
        if number == self._newest.number and self._newest.state in ("done", "failed"):
            self._newest.state = "dropped"
            self._remove()

    def close(self) -> None:
        """End a copy that is being made."""
        self._closing = True
        self._thread.shutdown()
        self._remove()


def _piece(path: Path, offset: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)
    except FileNotFoundError:
        raise NotFound("the copy was dropped") from None
