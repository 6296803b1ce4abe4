"""Which session is told that it is alone, for how long, and who has to wait until that is over.

A session that is alone may rely on what it knows of names and attributes: nobody else changes them. It is
told so in answer to its renewal, for a few seconds; it counts them from before it asked, this server from its
answer, so that the session's end is the earlier one. Nothing is called back: who wants to begin a second
session waits until what was granted has ended. From then on any file may be open in the first one, until it
has said which are: it may have opened some without a call. In memory only; after a restart, what may have
been granted before is waited for. In the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from metaserver.sessions import CLOCKS_APART, Sessions

QUIET_SECONDS = 3.0
"""So long nobody begins or ends a session before one is granted: mounts that come together never wait."""

SHORTEST_WAIT_SECONDS = 0.001
"""The loop's clock may not tell apart two moments that are closer."""


class Grants:
    """The grants of one metadata server.

    Args:
        sessions: all that live.
        seconds: how long a session counts as alone after a renewal; 0: never.
        before_seconds: so much may be left of what was granted before this server's start.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        sessions: Sessions,
        seconds: float,
        before_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions, self._seconds, self._clock = sessions, seconds, clock
        now = clock()
        self._ends = now + before_seconds
        self._quiet_since = now
        self._joining = 0
        self._granted = 0
        """The session that was granted something last, and may have opened files without a call; 0: none."""
        self._all_ended = asyncio.Event()
        sessions.on_end(self._session_ended)

    def extend(self, session: int) -> float:
        """Return how long a session that has just been renewed may count itself alone, in its own seconds."""
        now = self._clock()
        if self._joining or self._sessions.count() != 1:
            return 0.0
        if self._sessions.may_reclaim() or self._sessions.asks_opens(session):
            return 0.0
        if now < self._quiet_since + QUIET_SECONDS:
            return 0.0
        self._ends, self._granted = now + self._seconds, session
        return self._seconds * (1 - CLOCKS_APART)

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[None]:
        """Within, one more session may begin: nobody counts as alone, and nobody is told so."""
        self._joining += 1
        try:
            await self._await_end()
            if self._granted:
                self._sessions.ask_opens(self._granted)
                self._granted = 0
            yield
        finally:
            self._joining -= 1
            self._quiet_since = self._clock()

    async def _await_end(self) -> None:
        while (left := self._ends - self._clock()) > 0:
            self._all_ended.clear()
            try:
                await asyncio.wait_for(self._all_ended.wait(), max(left, SHORTEST_WAIT_SECONDS))
            except TimeoutError:
                continue

    def _session_ended(self, _session: int) -> None:
        """What was granted is over with the last session: only a sole one was ever granted anything."""
        self._quiet_since = self._clock()
        if not self._sessions.count():
            self._ends = self._quiet_since
            self._all_ended.set()

    def describe(self) -> float:
        """Return how many seconds are left of what was granted, for people."""
        return round(max(0.0, self._ends - self._clock()), 3)
