"""Which data servers have room for new blocks, and what follows from it for writes.

A full server votes, serves and deletes as ever; it only counts as unable to take writes. It moves no blocks.
`lacks_room` and `enough_room` are pure; the rest is thin I/O on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from mediator.fanout import outcome_of, survive
from mediator.servers import Metadata, Server
from mediator.vote import servers_in_words
from wire.digest import BLOCK_BYTES
from wire.errors import NoSpace, QuorumfsError
from wire.methods import BookkeepingMethods, CommonMethods
from wire.quorum import Quorum

ROOM_BYTES = BLOCK_BYTES + 64 * 1024
"""A server with less is full: the next block would not fit."""
LOOK_SECONDS = 5.0
FULL_LOOK_SECONDS = 0.5
"""All servers are asked for their room so often; more often while one is full."""
STATUS_SECONDS = 1.0
HOPE_SECONDS = 8.0
"""So long after something was deleted, its room may still come: a write waits for it instead of failing."""

LONGEST_SECONDS = 30.0
"""A write waits no longer in all: room that comes again and again may be taken by others each time."""


def lacks_room(quorum: Quorum, answers: Mapping[int, Any]) -> bool:
    """Tell whether a put failed for lack of room: with room everywhere, Qw servers could have taken it.

    Args:
        quorum: N and Qw.
        answers: by server number: None (it took it), an error, or nothing yet (left out). Servers that are
            down must be among them, with an error.
    """
    errors = [answer for answer in answers.values() if isinstance(answer, QuorumfsError)]
    others = sum(not isinstance(error, NoSpace) for error in errors)
    return others < len(errors) and quorum.servers - others >= quorum.write


def enough_room(quorum: Quorum, servers: Sequence[Server]) -> bool:
    """Tell whether Qw servers that are up have room; too few that are up are another matter."""
    if True not in [server.full for server in servers]:
        return True
    up = [server for server in servers if server.up]
    return len(up) < quorum.write or sum(not server.full for server in up) >= quorum.write


def room_of(status: Any) -> tuple[int, int] | None:
    """Return how many bytes are free and there are on a data server's disk, None if it does not say."""
    if not isinstance(status, dict):
        return None
    free, total = status.get("free_bytes"), status.get("total_bytes")
    return (free, total) if type(free) is int and type(total) is int and min(free, total) >= 0 else None


class Room:
    """Keeps `Server.full` true. `has_room_again` is told of each server that was full and no longer is."""

    def __init__(
        self,
        quorum: Quorum,
        servers: Sequence[Server],
        metadata: Metadata,
        deleted_at: Callable[[], float],
        has_room_again: Callable[[Server], None],
        recheck: Callable[[], Awaitable[None]],
    ) -> None:
        """Args: `deleted_at` tells when this mediator deleted something last, on the monotonic clock;
        `recheck` looks at the servers that are down: one that is back may be the one with room.
        """
        self._recheck = recheck
        self._deleted_at = deleted_at
        self._quorum = quorum
        self._servers = servers
        self._metadata = metadata
        self._has_room_again = has_room_again
        self._garbage: int | None = None
        self._hope_until = 0.0
        self._looking: asyncio.Task[None] | None = None

    @property
    def enough(self) -> bool:
        """Whether a block can be put now, as far as is known."""
        return enough_room(self._quorum, self._servers)

    def refusal(self) -> str:
        """Return why a write would fail for lack of room now, "" if it would not, or may not."""
        if self.enough or time.monotonic() < max(self._hope_until, self._deleted_at() + HOPE_SECONDS):
            return ""
        return self.reason()

    async def checked_refusal(self) -> str:
        """Return the same after another look at the servers that are down."""
        if self.refusal():
            await self._recheck()
        return self.refusal()

    def reason(self) -> str:
        """Say who is full, and what to do."""
        full = [server.number for server in self._servers if server.up and server.full]
        return (
            f"no room is left on data {servers_in_words(full)}, and Qw={self._quorum.write} of "
            f"{self._quorum.servers} must take a write; delete files, or give these servers larger disks"
        )

    def note_full(self, server: Server) -> None:
        """A server refused a block for lack of room."""
        server.full = True

    async def look(self) -> None:
        """Ask all servers for their room at once; callers share one look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="room")
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        counted = outcome_of(self._metadata.ask(BookkeepingMethods.counts))
        up = [server for server in self._servers if server.up]
        asked = (outcome_of(server.call(STATUS_SECONDS, CommonMethods.status)) for server in up)
        counts, *answers = await asyncio.gather(counted, *asked)
        self._note_garbage(counts)
        for server, answer in zip(up, answers, strict=True):
            if (told := room_of(answer)) is not None:
                self._note(server, free_bytes=told[0])

    def _note_garbage(self, counts: Any) -> None:
        garbage = counts.get("garbage_blocks") if isinstance(counts, dict) else None
        if garbage != self._garbage and self._garbage is not None:
            self._hope_until = time.monotonic() + HOPE_SECONDS
        self._garbage = garbage

    def _note(self, server: Server, free_bytes: int) -> None:
        was_full, server.full = server.full, free_bytes < ROOM_BYTES
        if was_full and not server.full:
            self._has_room_again(server)

    async def require(self) -> None:
        """Return when a block may be put; wait for room that deleting is about to bring.

        Raises:
            NoSpace: too few servers have room.
        """
        if self.enough:
            return
        until = time.monotonic() + LONGEST_SECONDS
        await self._recheck()
        await self.look()
        while not self.enough:
            if refusal := self.refusal() if time.monotonic() < until else self.reason():
                raise NoSpace(refusal, {"full": [s.number for s in self._servers if s.full]})
            await asyncio.sleep(FULL_LOOK_SECONDS / 2)
            await self.look()

    async def run_forever(self) -> None:
        """Look from time to time until cancelled."""
        while True:
            await survive(self.look(), "looking for room")
            full = any(server.full for server in self._servers)
            await asyncio.sleep(FULL_LOOK_SECONDS if full else LOOK_SECONDS)
