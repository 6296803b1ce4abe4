"""Keeps a reserve on the database's disk: what makes the database grow is refused while less is free.

A part of the reserve is a file of its own (metaserver.reserve), made here. In the event loop's thread only;
asks the file system a few times a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from metaserver.store import Store
from wire.errors import NoSpace

LOOK_SECONDS = 0.1
LOOK_CALLS = 16
"""And so often at least: a fast program must not use up the reserve between two looks."""
FILE_PART = 4
"""The file has one part in so many of the reserve."""
CHANGE_BYTES = 64 * 1024
"""No change of one name or one block writes more into the log (some ten pages) and the database."""


class Room:
    """The room on the disk that holds the database of `store`."""

    def __init__(self, store: Store, reserve_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._looked = clock()
        self._calls = 0
        self._enough = True
        self._look()

    def require(self) -> None:
        """Raise NoSpace while the reserve is all that is left."""
        if refusal := self.refusal():
            raise NoSpace(refusal)

    def refusal(self) -> str:
        """Return why what makes the database grow is refused now, "" if it is not."""
        now = self._clock()
        self._calls += 1
        if now - self._looked >= LOOK_SECONDS or self._calls >= LOOK_CALLS:
            self._looked, self._calls = now, 0
            self._look()
        if self._enough:
            return ""
        return "the metadata server's disk is full; delete files, or give it a larger one"

    def changes_ahead(self) -> int:
        """Return how many changes may wait and certainly find room, whatever else fills the disk."""
        return 0 if self.refusal() else self._reserve_bytes // FILE_PART // CHANGE_BYTES

    def _look(self) -> None:
        if not self._store.files.look():
            return  # no change is taken for that
        free_bytes, part = self._store.free_bytes(), self._reserve_bytes // FILE_PART
        if free_bytes >= self._reserve_bytes + part and part:
            self._store.reserve.keep(part)
        if free_bytes < self._reserve_bytes:
            # The log's pages may need as much room again in the database: see to it while there is some.
            self._store.empty_log()
            free_bytes = self._store.free_bytes()
        self._enough = free_bytes >= self._reserve_bytes
