"""Whose repair is next: the block in most danger, whatever server lacks it, and no faster than the rate.

It moves no blocks. One event loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from mediator.pace import Pace

AT_ONCE = 8
"""So many blocks on their way at once to all servers that are refilled; each may hold 1 MiB in memory."""


class Turns:
    """Lets a bounded number of repairs work at once; of those that wait, the most dangerous first."""

    def __init__(self, pace: Pace, at_once: int = AT_ONCE) -> None:
        self._pace = pace
        self._free = at_once
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._looking = False

    @property
    def most_bytes_per_second(self) -> int:
        """How fast bytes are moved at most; 0: as fast as it goes."""
        return self._pace.bytes_per_second

    @asynccontextmanager
    async def turn(self, danger: int, size: int) -> AsyncIterator[None]:
        """Wait until it is this block's turn; hold the turn until the end of the context.

        Args:
            danger: how many servers lack a good copy.
            size: how many bytes are to be moved.
        """
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-danger, next(self._order), mine))
        self._look_soon()
        try:
            await mine
            await self._pace.wait(size)
            yield
        finally:
            # One that was cancelled while it waited has no turn to give back.
            if mine.done() and not mine.cancelled():
                self._free += 1
                self._look_soon()

    def _look_soon(self) -> None:
        """Give free turns away once all who want one now have said so: also who has just given one back."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        while self._free and self._waiting:
            _, _, first = heapq.heappop(self._waiting)
            if not first.done():
                self._free -= 1
                first.set_result(None)
