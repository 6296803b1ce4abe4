"""What people ask: how a file's replicas vote now, how the servers are, how much room there is.

It reads only. One event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mediator.fanout import outcome_of
from mediator.health import Health
from mediator.refusals import Refusals
from mediator.repair import Repairs
from mediator.room import room_of
from mediator.servers import Metadata
from mediator.vote import read_outcome
from wire.errors import QuorumfsError
from wire.messages import BlockRecord, MappedExtent, Usage
from wire.methods import BookkeepingMethods, CommonMethods, NamespaceMethods
from wire.quorum import Quorum

MOST_BLOCKS = 256
"""`explain` votes on so many blocks a call; it says when a file has more."""
MOST_PATHS = 16
SURVEYS_IN_FLIGHT = 4
STATUS_SECONDS = 1.0
"""How old the data servers' own numbers may be, and how long they are waited for."""


class Explainer:
    """Answers questions about files and servers."""

    def __init__(
        self, quorum: Quorum, health: Health, metadata: Metadata, repairs: Repairs, refusals: Refusals
    ) -> None:
        self._quorum = quorum
        self._health = health
        self._metadata = metadata
        self._repairs = repairs
        self._refusals = refusals
        self._statuses: dict[int, dict[str, Any]] = {}
        self._statuses_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def explain(self, ino: int) -> dict[str, Any]:
        """Have all replicas of a file's blocks vote now; see MediatorMethods.explain. Raises StaleFile."""
        attributes = await self._metadata.ask(NamespaceMethods.getattr, ino)
        paths = await self._metadata.ask(BookkeepingMethods.paths_of, ino, MOST_PATHS)
        extents, complete = await self._extents(ino)
        first_of = {extent.block: extent for extent in reversed(extents)}
        chosen = sorted(first_of.values(), key=lambda extent: extent.offset)[:MOST_BLOCKS]
        limit = asyncio.Semaphore(SURVEYS_IN_FLIGHT)
        return {
            "ino": ino,
            "paths": [path.decode(errors="backslashreplace") for path in paths],
            "size": attributes.size,
            "quorum": quorum_as_data(self._quorum),
            "last_refusal": self._refusals.last(ino),
            "blocks": await asyncio.gather(*(self._explain_block(extent, limit) for extent in chosen)),
            "cut": not complete or len(chosen) < len(first_of),
        }

    async def _extents(self, ino: int) -> tuple[list[MappedExtent], bool]:
        """Return a file's extents, enough of them for MOST_BLOCKS blocks, and whether these are all."""
        extents: list[MappedExtent] = []
        while True:
            offset = extents[-1].offset + extents[-1].length if extents else 0
            run = await self._metadata.ask(NamespaceMethods.file_map, ino, offset, MOST_BLOCKS)
            extents += run.extents
            if run.complete or not run.extents:
                return extents, True
            if len({extent.block for extent in extents}) >= MOST_BLOCKS:
                return extents, False

    async def _explain_block(self, extent: MappedExtent, limit: asyncio.Semaphore) -> dict[str, Any]:
        async with limit:
            verdicts = await self._repairs.survey(
                BlockRecord(extent.block, extent.block_length, extent.digest)
            )
        return {
            "block": extent.block.hex(),
            "digest": extent.digest.hex(),
            "length": extent.block_length,
            "offset": extent.offset,
            "outcome": str(read_outcome(self._quorum, list(verdicts.values()))),
            "verdicts": {str(number): str(verdict) for number, verdict in verdicts.items()},
        }

    async def statuses(self) -> dict[int, dict[str, Any]]:
        """Return what the data servers that are up said of themselves within the last second."""
        up = {server.number for server in self._health.up}
        if time.monotonic() - self._statuses_at > STATUS_SECONDS or up != set(self._statuses):
            if self._asking is None or self._asking.done():
                self._asking = asyncio.get_running_loop().create_task(self._ask_statuses(), name="status")
            await asyncio.shield(self._asking)
        return self._statuses

    async def _ask_statuses(self) -> None:
        up = self._health.up
        calls = (outcome_of(server.call(STATUS_SECONDS, CommonMethods.status)) for server in up)
        answers = zip(up, await asyncio.gather(*calls), strict=True)
        self._statuses = {
            server.number: said for server, said in answers if not isinstance(said, QuorumfsError)
        }
        self._statuses_at = time.monotonic()

    async def usage(self) -> Usage:
        """Return the least of the data servers' room: every server holds every block."""
        told = [room for status in (await self.statuses()).values() if (room := room_of(status)) is not None]
        free = min((free for free, _ in told), default=0)
        total = min((total for _, total in told), default=0)
        counts = await self._metadata.ask(BookkeepingMethods.counts)
        free_inodes = int(counts["free_inodes"])
        return Usage(total, free, int(counts["inodes"]) + free_inodes, free_inodes)


def quorum_as_data(quorum: Quorum) -> dict[str, int]:
    """Return N, Qr and Qw by these names."""
    return {"N": quorum.servers, "Qr": quorum.read, "Qw": quorum.write}
