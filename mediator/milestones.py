"""Carrying the metadata's milestone to the data servers, which keep it, and back at each start.

A metadata database that is behind what some data server has kept was put back by hand, and is told so
(metaserver.milestones). Nothing that it does not know is deleted before it was. One event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mediator.fanout import outcome_of, survive
from mediator.health import Health
from mediator.servers import Metadata, Server
from wire.errors import QuorumfsError
from wire.messages import Milestone
from wire.methods import BookkeepingMethods, DataMethods
from wire.quorum import Quorum

PERIOD_SECONDS = 10.0
"""A milestone is taken so often while anything is changed. What is put back and is younger is not noticed."""
RETRY_SECONDS = 1.0

log = logging.getLogger("mediator.milestones")


class Milestones:
    """Tells data servers how far the metadata is, and the metadata server what they have kept."""

    def __init__(
        self, quorum: Quorum, health: Health, metadata: Metadata, found_older: Callable[[], None]
    ) -> None:
        """Args:
        found_older: is called when the metadata database turns out to have become an older one.
        """
        self._quorum = quorum
        self._health = health
        self._metadata = metadata
        self._found_older = found_older
        self._starts = 0
        """How often a server was seen to start."""
        self._compared_at = self._enough_at = -1
        """The last of these after which the servers that are up were asked, and after which Qr answered."""
        self._found_older_ns: int | None = None
        """When the database was found to be an older one, as far as this mediator has heeded it."""
        self._taken = Milestone("", 0)
        self._kept: dict[int, Milestone] = {}
        self._news = asyncio.Event()

    def status(self) -> dict[str, Any]:
        """Return the milestone that was taken last, and how many data servers have kept it."""
        kept = sum(milestone == self._taken for milestone in self._kept.values())
        return {"number": self._taken.number, "kept": kept}

    def came_up(self, server: Server) -> None:
        """A server may have another state now than before."""
        self._starts += 1
        self._kept.pop(server.number, None)
        self._news.set()

    async def run_forever(self) -> None:
        """Compare after each start, and take a milestone in each period, until cancelled."""
        while True:
            await survive(self._try_once(), "milestones")
            self._news.clear()
            pause_seconds = PERIOD_SECONDS if self._enough_at == self._starts else RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._news.wait()

    async def _try_once(self) -> None:
        try:
            await self.run_once()
        except QuorumfsError as error:
            log.debug("how far the metadata is was not told: %s", error.message)

    async def run_once(self) -> None:
        """Compare, if that is due; then have the data servers keep how far the metadata is.

        Raises:
            QuorumfsError: the metadata server does not answer.
            Busy: its database is an older one.
        """
        if self._enough_at != self._starts:
            await self._compare()
        if self._enough_at == self._starts:
            self._taken = await self._metadata.ask(BookkeepingMethods.take_milestone)
            if self._taken.database:  # one of an older release has no name
                await asyncio.gather(*map(self._tell, self._health.up))

    async def require_compared(self) -> None:
        """Return once the metadata server knows what the servers that are up have kept.

        Raises:
            QuorumfsError: it does not answer, or its database is an older one and begins anew.
        """
        if self._compared_at != self._starts:
            await self._compare()

    async def _compare(self) -> None:
        starts = self._starts
        answers = await asyncio.gather(
            *(
                outcome_of(server.call(self._metadata.deadline_seconds, DataMethods.milestones))
                for server in self._health.up
            )
        )
        said = [answer for answer in answers if not isinstance(answer, QuorumfsError)]
        kept = [self._taken, *(milestone for milestones in said for milestone in milestones)]
        enough = len(said) >= self._quorum.read
        self._heed(await self._metadata.ask(BookkeepingMethods.compare_milestones, kept, enough))
        self._compared_at = starts
        if enough:
            self._enough_at = starts

    def _heed(self, found_older_ns: int) -> None:
        """Look whether the database was found to be an older one since the last look, whoever found it."""
        known, self._found_older_ns = self._found_older_ns, found_older_ns
        if found_older_ns and known is not None and known != found_older_ns:
            log.warning("the metadata database is older than what data servers know: it has begun anew")
            self._found_older()

    async def _tell(self, server: Server) -> None:
        milestone = self._taken
        if self._kept.get(server.number) == milestone:
            return
        deadline = self._metadata.deadline_seconds
        told = await outcome_of(server.call(deadline, DataMethods.keep_milestone, milestone))
        if not isinstance(told, QuorumfsError):
            self._kept[server.number] = milestone
