"""Vouching for the blocks that were committed before a start of the metadata server: who lacks them is known.

The metadata server does not know after a start which puts were open before it. A mediator that is the only
one, and was there, knows of its own; else all inventories must be compared. It compares nothing itself
(mediator.refill). One event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mediator.fanout import Background
from mediator.servers import Metadata
from wire.methods import BookkeepingMethods


class Vouching:
    """What one mediator can vouch for.

    Attributes:
        starts: how often the metadata server was seen to start.
    """

    def __init__(
        self,
        metadata: Metadata,
        background: Background,
        require_compared: Callable[[], Awaitable[None]],
        *,
        servers: int,
        is_only: bool,
    ) -> None:
        """Args:
        require_compared: returns once the metadata server knows whether its database is an older one.
        servers: how many data servers there are.
        is_only: there is no other mediator, so that the lag that this one told is all there is.
        """
        self.starts = 0
        self._metadata = metadata
        self._background = background
        self._require_compared = require_compared
        self._servers = servers
        self._is_only = is_only
        self._compared: set[int] = set()
        self._vouched = False
        self._task: asyncio.Task[None] | None = None

    def learn(self, complete: bool) -> None:
        """Note whether the metadata server relies on what it knows already."""
        self._vouched = complete

    def metadata_came_up(self) -> None:
        """The metadata server was restarted: it does not know any more which puts were open.

        This mediator knows of its own. Another one may have been killed with some.
        """
        self.starts += 1
        self._compared.clear()
        self._stop()
        if self._vouched and self._is_only:
            self._task = self._background.start(self._vouch_later(), "vouching for the newest blocks")

    def distrust(self) -> None:
        """The metadata is an older one: what it was told is gone."""
        self._vouched = False
        self._stop()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _vouch_later(self) -> None:
        """Vouch once all puts that were open at the restart have ended, and are told of if they failed.

        Not where the database turns out to be an older one: `distrust` ends this then.
        """
        await self._require_compared()
        await asyncio.sleep(2 * self._metadata.witness_seconds)
        await self._metadata.ask(BookkeepingMethods.vouch_recent)

    async def note_compared(self, number: int, starts: int) -> None:
        """A server was found to have all. Once all were, the metadata server may rely on what it knows.

        Args:
            number: the data server.
            starts: how many there were of the metadata server when the comparison began.
        """
        if starts != self.starts:
            return  # a part of it was compared with what an earlier one knew
        self._compared.add(number)
        if not self._vouched and len(self._compared) == self._servers:
            await self._metadata.ask(BookkeepingMethods.vouch_recent)
            self._vouched = True
