"""Deleting superseded blocks: on every data server, and only then forgotten by the metadata server.

What was deleted where while some server is down is remembered in memory only: deleting twice does no harm.
`Deletions` is pure; the rest is thin I/O on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from mediator.fanout import outcome_of, survive
from mediator.health import Health
from mediator.servers import Metadata, Server
from wire.errors import QuorumfsError
from wire.methods import BookkeepingMethods, DataMethods

ROUND_SECONDS = 1.0
FEWEST = 1000
MOST = 64 * 1024
"""How many garbage blocks one round asks for; it grows while a server that is down holds the oldest back.

Where even so many bring nothing new, the next ones are asked for: the others must not fill up for its sake.
"""
ANEW_SECONDS = 600.0
"""What was passed is asked for again when a server comes up, and so long after if all are up by then."""
BATCH = 4096
"""So many blocks are deleted with one call."""

log = logging.getLogger("mediator.collect")


class Deletions:
    """Which servers have deleted which garbage blocks."""

    def __init__(self, servers: Collection[int]) -> None:
        self._servers = frozenset(servers)
        self._by_block: dict[bytes, set[int]] = {}

    def __len__(self) -> int:
        return len(self._by_block)

    def to_delete(self, garbage: Sequence[bytes], number: int) -> list[bytes]:
        """Return the garbage that this server has not deleted yet."""
        return [block for block in garbage if number not in self._by_block.get(block, ())]

    def note(self, blocks: Sequence[bytes], number: int) -> None:
        """Remember that a server has deleted these."""
        for block in blocks:
            self._by_block.setdefault(block, set()).add(number)

    def finished(self, garbage: Sequence[bytes]) -> list[bytes]:
        """Return the garbage that all servers have deleted."""
        return [block for block in garbage if self._by_block.get(block, set()) >= self._servers]

    def drop(self, blocks: Sequence[bytes]) -> None:
        """Forget about blocks that the metadata server has forgotten."""
        for block in blocks:
            self._by_block.pop(block, None)

    def keep_only(self, garbage: Sequence[bytes]) -> None:
        """Forget about blocks that are no longer in the list: another mediator finished them."""
        wanted = set(garbage)
        self._by_block = {block: done for block, done in self._by_block.items() if block in wanted}

    def restarted(self, number: int) -> None:
        """A server was restarted: its deletions may not have survived, so that all are repeated."""
        for done in self._by_block.values():
            done.discard(number)


def next_limit(limit: int, found: int, news: int) -> int:
    """Return how much garbage to ask for next: more while a full page brings nothing new to delete."""
    if found < limit:
        return max(FEWEST, limit // 2) if found < limit // 4 else limit
    return limit if news else min(MOST, limit * 2)


class Collector:
    """Deletes garbage round by round."""

    def __init__(
        self, health: Health, metadata: Metadata, grace_seconds: float, deadline_seconds: float
    ) -> None:
        self._health = health
        self._metadata = metadata
        self._grace_ms = int(grace_seconds * 1000)
        self._deadline_seconds = deadline_seconds
        self._deletions = Deletions([server.number for server in health.servers])
        self._limit = FEWEST
        self._passed = b""
        """Up to this block, garbage is deleted as far as can be now, but is not forgotten."""
        self._passed_at = 0.0
        self._begins_anew = False
        self._forgotten = 0
        self.deleted_at = float("-inf")
        """When something was last deleted anywhere, on the monotonic clock."""

    def status(self) -> dict[str, Any]:
        """Return how many blocks are deleted for good, and how many of the newest page wait for servers."""
        return {"forgotten": self._forgotten, "waiting": len(self._deletions)}

    def restarted(self, server: Server) -> None:
        """A server came up again."""
        self._deletions.restarted(server.number)
        self._begins_anew = True

    async def run_once(self) -> int:
        """Delete what is garbage now on all servers that are up; return how many blocks were forgotten.

        Raises:
            QuorumfsError: the metadata server does not answer.
        """
        all_up = len(self._health.up) == len(self._health.servers)
        if self._begins_anew or (all_up and time.monotonic() - self._passed_at > ANEW_SECONDS):
            self._begins_anew, self._passed = False, b""
        passed = [self._passed] if self._passed else []
        garbage = await self._metadata.ask(BookkeepingMethods.garbage, self._limit, self._grace_ms, *passed)
        news = sum(await asyncio.gather(*(self._delete_on(server, garbage) for server in self._health.up)))
        if news:
            self.deleted_at = time.monotonic()
        finished = self._deletions.finished(garbage)
        if finished:
            await self._metadata.ask(BookkeepingMethods.forget, finished)
            self._forgotten += len(finished)
            self._deletions.drop(finished)
        if len(garbage) < self._limit:
            self._deletions.keep_only(garbage)
        elif self._limit == MOST and not news and not finished:
            self._passed, self._passed_at = garbage[-1], time.monotonic()
            self._deletions.keep_only([])
        self._limit = next_limit(self._limit, len(garbage), news + len(finished))
        return len(finished)

    async def _delete_on(self, server: Server, garbage: list[bytes]) -> int:
        epoch, blocks = server.epoch, self._deletions.to_delete(garbage, server.number)
        for start in range(0, len(blocks), BATCH):
            batch = blocks[start : start + BATCH]
            answer = await outcome_of(server.call(self._deadline_seconds, DataMethods.delete, batch))
            if isinstance(answer, QuorumfsError) or server.epoch != epoch:
                return start
            self._deletions.note(batch, server.number)
        return len(blocks)

    async def run_forever(self) -> None:
        """Collect until cancelled; while there is much, without pausing."""
        while True:
            before = self._forgotten
            await survive(self._try_once(), "garbage collection")
            if self._forgotten - before < FEWEST:
                await asyncio.sleep(ROUND_SECONDS)

    async def _try_once(self) -> None:
        try:
            await self.run_once()
        except QuorumfsError as error:
            log.debug("no garbage collected: %s", error.message)
