"""Ends sessions whose lease has passed, and removes inodes that nobody has any more.

Never removes an inode that a session has open, or may have open and could not say so yet after a
restart. In the event loop's thread only; gives the loop its turn between transactions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from metaserver.contents import Contents
from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.errors import QuorumfsError

STALL_SECONDS = 1.0
"""A turn that comes so much too late means that this process did not run, and heard of nobody."""

SOON_SECONDS = 0.05
"""The contents of files whose names go within so long are removed together: they share pages of the log."""

logger = logging.getLogger("metaserver")


class Reaper:
    """The background job of the sessions."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        contents: Contents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._contents = contents
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    async def run_once(self) -> None:
        """End what expired; remove all orphans that may be removed."""
        for session in self._sessions.expired():
            logger.warning("session %d ended: it was not renewed in time", session)
            self._sessions.end(session)
        if self._store.was_put_back and not self._sessions.may_reclaim():
            self._store.change(self._store.settle)
        await self.remove_orphans()

    async def remove_orphans(self) -> None:
        """Remove all orphans that may be removed."""
        after = 0
        while orphans := self._store.read(self._orphans, after):
            for ino in orphans:
                finished = False
                while not finished:
                    finished = self.remove_if_orphan(ino)
                    await asyncio.sleep(0)
            after = orphans[-1]

    async def finish(self) -> None:
        """Remove orphans as the server ends; what a failing disk keeps from it is left to the next start."""
        try:
            await self.remove_orphans()
        except QuorumfsError as error:
            logger.error("orphans are left to the next start: %s", error)

    def remove_soon(self) -> None:
        """Have the contents removed of inodes that were condemned; at once where no loop runs."""
        if not self._contents.condemned or self._timer is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._remove_condemned()
        else:
            self._timer = loop.call_later(SOON_SECONDS, self._remove_condemned)

    def close(self) -> None:
        """Leave what is to be removed soon to the next start: the store is about to be closed."""
        if self._timer is not None:
            self._timer.cancel()

    def _remove_condemned(self) -> None:
        inodes, self._contents.condemned, self._timer = self._contents.condemned, [], None
        try:
            self._contents.condemned += self._store.change(self._contents.remove_condemned, inodes)
        except QuorumfsError as error:
            logger.error("removed files are left for later: %s", error)  # run_once finds them
        self.remove_soon()

    def _orphans(self, after: int) -> list[int]:
        rows = self._store.execute(
            "SELECT ino FROM inodes WHERE nlink <= 0 AND ino > ? ORDER BY ino LIMIT 100", (after,)
        )
        return [row[0] for row in rows.fetchall()]

    def remove_if_orphan(self, ino: int) -> bool:
        """Remove an inode, or a part of its contents, if nobody has it; return False if more is left."""
        if self._sessions.may_be_open(ino) or not self._store.read(self._is_orphan, ino):
            return True
        return self._store.change(self._contents.remove, ino)

    def _is_orphan(self, ino: int) -> bool:
        row = self._store.execute("SELECT nlink FROM inodes WHERE ino = ?", (ino,)).fetchone()
        return row is not None and row[0] <= 0

    async def run_forever(self, interval_seconds: float) -> None:
        """Run every `interval_seconds` until cancelled. A failure is logged and tried again."""
        due = self._clock() + interval_seconds
        while True:
            await asyncio.sleep(max(0.0, due - self._clock()))
            late = self._clock() - due
            if late > STALL_SECONDS:
                logger.warning("nothing ran here for %.1f s: all leases are longer by as much", late)
                self._sessions.forgive(late)
            try:
                await self.run_once()
            except QuorumfsError as error:
                logger.error("expired sessions and orphans are left for later: %s", error)
            except Exception:
                logger.exception("expired sessions and orphans are left for later by a defect")
            due = self._clock() + interval_seconds
