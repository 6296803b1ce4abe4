"""Scrubbing: every replica is read by its data server and held against the witness, page by page.

The copies of the metadata that lie beside the files' blocks come first. Each server is scrubbed by itself,
once in a period, no faster than a rate, and giving way to users' calls. How far it is, and when it ended
last, the data server keeps: a mediator that comes after goes on from there.
`pace`, `is_due` and `batches` are pure; the rest is thin I/O on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from mediator import manifest
from mediator.copies import MetadataCopies
from mediator.fanout import Background, outcome_of, survive
from mediator.health import Health
from mediator.placement import holders
from mediator.repair import Repaired, Repairs
from mediator.servers import Metadata, Server
from mediator.vote import Verdict, judge
from wire.errors import (
    BlockDamaged,
    BlockMissing,
    DeadlineExceeded,
    NoSpace,
    QuorumfsError,
    TransportError,
)
from wire.messages import BlockRecord, VotedPart
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods

log = logging.getLogger("mediator")

PAGE = 1024
BATCH_BYTES = 4 * 1024 * 1024
BATCH_BLOCKS = 256
"""So much is read by one call: a user's call waits for no more than the rest of it."""
BATCH_SECONDS = 30.0
LOOK_SECONDS = 5.0
"""Servers are looked at so often for a pass that is due."""
YIELD_SECONDS = 0.05
LONGEST_YIELD_SECONDS = 2.0
"""While users' calls come in, a batch waits so long at most, so that scrubbing never stands still."""
DAY_SECONDS = 86_400.0
RETRY_SECONDS = 2.0


Mend = Callable[[Server, "ScrubPass", BlockRecord, Verdict], Awaitable[None]]


@dataclass
class ScrubPass:
    """One pass over a server's replicas: what the data server keeps, and what people see."""

    begun_ns: int = 0
    ended_ns: int = 0
    """When this pass ended; 0 while it runs."""
    after: str = ""
    """All blocks up to this id (in hex) are done."""
    total_blocks: int = 0
    total_bytes: int = 0
    checked: int = 0
    checked_bytes: int = 0
    corrupt: int = 0
    missing: int = 0
    repaired: int = 0
    seconds: float = 0.0
    last_full_ns: int = 0
    """When a pass over all replicas ended last; 0: never."""
    hurried: bool = False

    @classmethod
    def of(cls, kept: object) -> ScrubPass:
        """Rebuild what a data server kept; what does not fit is left out."""
        made = cls()
        for name, value in kept.items() if isinstance(kept, dict) else ():
            if type(value) is type(getattr(made, name, None)):
                setattr(made, name, value)
        try:
            bytes.fromhex(made.after)
        except ValueError:
            made.after = ""
        return made


def is_due(last: ScrubPass, now_ns: int, period_seconds: float) -> bool:
    """Tell whether a new pass should begin: half a period after the last one's end, to be done by its end.

    One that ended at a time that is still to come, as the date was wrong, is as good as an old one.
    """
    return last.ended_ns > 0 and not 0 <= (now_ns - last.ended_ns) / 1e9 < period_seconds / 2


def pace(state: ScrubPass, now_ns: int, period_seconds: float, most_bytes_per_second: float) -> float:
    """Return how many bytes to read a second, so that a pass takes half a period; at most so many.

    Nor does it take longer if the date is set back meanwhile.
    """
    if state.hurried:
        return most_bytes_per_second
    seconds_left = period_seconds / 2 - max(0.0, (now_ns - state.begun_ns) / 1e9)
    bytes_left = max(BATCH_BYTES, state.total_bytes - state.checked_bytes)
    if seconds_left <= 0:
        return most_bytes_per_second
    return min(most_bytes_per_second, bytes_left / seconds_left)


def batches(records: Sequence[BlockRecord]) -> Iterator[list[BlockRecord]]:
    """Part records into runs that one call may read."""
    batch: list[BlockRecord] = []
    size = 0
    for record in records:
        if batch and (size + record.length > BATCH_BYTES or len(batch) == BATCH_BLOCKS):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.length
    if batch:
        yield batch


def verdict_of(record: BlockRecord, digest: bytes | None) -> Verdict:
    """Hold what a data server read against the witness: None is missing, no bytes at all a damaged record."""
    if digest is None:
        return judge(record, BlockMissing())
    return judge(record, digest or BlockDamaged())


class Scrubs:
    """Scrubs all data servers, each by a task of its own."""

    def __init__(
        self,
        health: Health,
        metadata: Metadata,
        repairs: Repairs,
        copies: MetadataCopies,
        background: Background,
        calls: Callable[[], int],
        period_seconds: float,
        most_bytes_per_second: float,
    ) -> None:
        """Args: `calls` counts users' calls, so that scrubbing gives way while it grows."""
        self._health = health
        self._metadata = metadata
        self._repairs = repairs
        self._copies = copies
        self._background = background
        self._calls = calls
        self._period_seconds = period_seconds
        self._most_bytes_per_second = most_bytes_per_second
        self._passes: dict[int, ScrubPass] = {}
        self._wake = {server.number: asyncio.Event() for server in health.servers}

    def progress(self, server: Server) -> dict[str, Any] | None:
        """Return how far a server's scrub is, or how the last one ended; None if nothing is known yet."""
        state = self._passes.get(server.number)
        if state is None:
            return None
        return {**asdict(state), "server": server.number, "state": "done" if state.ended_ns else "running"}

    async def hurry(self, server: Server) -> dict[str, Any]:
        """Scrub a server now, from the start, as fast as the rate allows; return the progress.

        Raises:
            QuorumfsError: it does not answer.
        """
        await self._begin(server, hurried=True)
        self._wake[server.number].set()
        return self.progress(server) or {}

    def came_up(self, server: Server) -> None:
        """A server came up, perhaps with another directory: it is asked again, now, how far its scrub is."""
        self._passes.pop(server.number, None)
        self._wake[server.number].set()

    async def run_forever(self) -> None:
        """Scrub until cancelled."""
        async with asyncio.TaskGroup() as group:
            for server in self._health.servers:
                group.create_task(self._run(server), name=f"scrub of server {server.number}")

    async def _run(self, server: Server) -> None:
        while True:
            await survive(self._turn(server), f"scrub of server {server.number}")

    async def _turn(self, server: Server) -> None:
        """Do the next batch's worth of work, or wait until there is some."""
        try:
            if server.up and await self._has_work(server):
                await self._run_page(server)
                return
        except QuorumfsError as error:
            if self._health.metaserver.up:  # else that it is down is known
                log.info("scrub of server %d: %s; it goes on later", server.number, error.message)
            self._passes.pop(server.number, None)  # it may come back with another directory
            await self._pause(server, RETRY_SECONDS)
            return
        await self._pause(server, LOOK_SECONDS)

    async def _has_work(self, server: Server) -> bool:
        state = self._passes.get(server.number)
        if state is None:
            said = await server.call(self._metadata.deadline_seconds, CommonMethods.status)
            state = self._passes[server.number] = ScrubPass.of(said.get("scrub"))
        if not state.begun_ns or is_due(state, time.time_ns(), self._period_seconds):
            await self._begin(server, hurried=False)
        now = self._passes.get(server.number)  # gone if the server came up anew meanwhile
        return now is not None and not now.ended_ns

    async def _begin(self, server: Server, *, hurried: bool) -> None:
        """Begin a pass from the start."""
        last = self._passes.get(server.number)
        if last is None:
            said = await server.call(self._metadata.deadline_seconds, CommonMethods.status)
            last = ScrubPass.of(said.get("scrub"))
        counts = await self._metadata.ask(BookkeepingMethods.counts)
        copies = await self._copies.records(server)
        state = ScrubPass(
            begun_ns=time.time_ns(),
            total_blocks=int(counts["blocks"]) + len(copies),
            total_bytes=int(counts["block_bytes"]) + sum(record.length for record in copies),
            last_full_ns=last.last_full_ns,
            hurried=hurried,
        )
        self._passes[server.number] = state
        await self._keep(server, state)

    async def _run_page(self, server: Server) -> None:
        """Scrub the next page of committed blocks; before the first one, the copies of the metadata.

        Their ids come before those of all others.
        """
        state = self._passes[server.number]
        after = bytes.fromhex(state.after)
        if not after or manifest.is_reserved(after):
            copies = await self._copies.records(server)
            if not await self._run_batches(server, state, copies, self._mend_copy):
                return
        page = await self._metadata.ask(BookkeepingMethods.blocks, after, PAGE)
        numbers = [s.number for s in self._health.servers]
        here = [record for record in page if server.number in holders(record.block, numbers)]
        if not await self._run_batches(server, state, here, self._mend):
            return
        if not page:
            state.ended_ns = state.last_full_ns = time.time_ns()
            await self._keep(server, state)
            return
        state.after = page[-1].block.hex()

    async def _run_batches(
        self, server: Server, state: ScrubPass, records: Sequence[BlockRecord], mend: Mend
    ) -> bool:
        """Scrub blocks, paced. Returns False as soon as another pass has taken this one's place."""
        for batch in batches(records):
            begun = time.monotonic()
            await self._run_batch(server, state, batch, mend)
            if self._passes.get(server.number) is not state:
                return False  # a pass that is in a hurry: its wake-up came already
            size = sum(record.length for record in batch)
            rate = pace(state, time.time_ns(), self._period_seconds, self._most_bytes_per_second)
            await self._pause(server, begun + size / rate - time.monotonic())
            state.seconds += time.monotonic() - begun
            if self._passes.get(server.number) is not state:
                return False
            await self._keep(server, state)
        return True

    async def _run_batch(
        self, server: Server, state: ScrubPass, batch: list[BlockRecord], mend: Mend
    ) -> None:
        await self._give_way()
        verdicts = await self._votes(server, batch)
        for record, verdict in zip(batch, verdicts, strict=True):
            if verdict not in (Verdict.GOOD, Verdict.DOWN):
                await mend(server, state, record, verdict)
        read = [r for r, verdict in zip(batch, verdicts, strict=True) if verdict is not Verdict.DOWN]
        state.checked += len(read)
        state.checked_bytes += sum(record.length for record in read)
        state.after = batch[-1].block.hex()

    async def _votes(self, server: Server, batch: list[BlockRecord]) -> list[Verdict]:
        """Have a server vote on blocks: on each alone if all together take too long, or fail.

        One that does so alone gets no vote, though its server is up: the disk may try to read a weak place
        for minutes, or the index have a damaged page, which must not keep all others from their turn.
        """
        parts = [VotedPart(record.block, 0, 0) for record in batch]
        try:
            digests = await server.call(BATCH_SECONDS, DataMethods.digests, parts)
            if len(digests) != len(parts):
                raise QuorumfsError(f"{len(digests)} votes came, not {len(parts)}")
        except QuorumfsError as error:
            is_late = isinstance(error, DeadlineExceeded)
            if not server.up or (isinstance(error, TransportError) and not is_late):
                raise
            if len(batch) > 1:
                return [verdict for record in batch for verdict in await self._votes(server, [record])]
            what = "server %d has no vote on block %s: %s"
            log.warning(what, server.number, batch[0].block.hex(), error.message)
            return [Verdict.DOWN]
        return [verdict_of(record, digest) for record, digest in zip(batch, digests, strict=True)]

    async def _mend(self, server: Server, state: ScrubPass, record: BlockRecord, verdict: Verdict) -> None:
        """Have a vote on what is not good, and count it, unless the block is no file's by now.

        While the metadata server is away, it is waited for: this pass does not come by here again.
        """
        repaired = await outcome_of(self._repairs.repair(record.block))
        while isinstance(repaired, TransportError) and self._passes.get(server.number) is state:
            await self._pause(server, RETRY_SECONDS)
            repaired = await outcome_of(self._repairs.repair(record.block))
        if isinstance(repaired, Repaired):
            if repaired.record is None:
                return
            state.repaired += repaired.verdicts.get(server.number) is Verdict.GOOD
        self._count(state, verdict)

    async def _mend_copy(
        self, server: Server, state: ScrubPass, record: BlockRecord, verdict: Verdict
    ) -> None:
        """Replace a damaged block of a copy of the metadata; one that was deleted meanwhile is left alone."""
        if verdict is Verdict.MISSING:
            return
        state.repaired += await self._copies.mend(server, record, verdict)
        self._count(state, verdict)

    @staticmethod
    def _count(state: ScrubPass, verdict: Verdict) -> None:
        state.corrupt += verdict is Verdict.CORRUPT
        state.missing += verdict is Verdict.MISSING

    async def _give_way(self) -> None:
        """Wait for a moment without users' calls, but not for ever."""
        end = time.monotonic() + LONGEST_YIELD_SECONDS
        seen = -1
        while seen != self._calls() and time.monotonic() < end:
            seen = self._calls()
            await asyncio.sleep(YIELD_SECONDS)

    async def _pause(self, server: Server, seconds: float) -> None:
        """Wait, but not on when the server comes up, or a pass that is in a hurry takes this one's place."""
        wake = self._wake[server.number]
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await wake.wait()
        wake.clear()

    async def _keep(self, server: Server, state: ScrubPass) -> None:
        """Have the server keep how far its scrub is; on a full disk what it kept before stays."""
        with suppress(NoSpace):
            await server.call(self._metadata.deadline_seconds, DataMethods.keep_scrub, asdict(state))
