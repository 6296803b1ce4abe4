"""Refilling a data server that came up: what it lacks is remembered by the metadata server (the lag).

Whole inventories are compared, page by page, only from time to time, when somebody asks for it, and when the
number of blocks shows that the lag is not all. It needs no state to go on after an interruption: it begins
anew and finds less to do. Thin I/O on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mediator.estimate import Costs
from mediator.fanout import Background, outcome_of
from mediator.health import Health
from mediator.inventories import Difference, compare, must_compare
from mediator.placement import holders
from mediator.progress import RefillProgress, WorkClock
from mediator.repair import Filled, Repaired, Repairs
from mediator.servers import Metadata, Server
from mediator.turns import Turns
from mediator.vouching import Vouching
from wire.errors import InternalError, QuorumfsError, TransportError
from wire.messages import BlockRecord, Lag
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods

PAGE = 4096
"""Records a page: about a quarter of a megabyte on the wire."""
IN_FLIGHT = 6
"""So many blocks on their way to one server."""
RETRY_SECONDS = 2.0
MOST_FRUITLESS = 3
"""So many passes in a row that mend nothing end a refill; the next inspection tries again."""
MOST_DOUBLINGS = 5
"""The pause of a refill that fails again and again is doubled so often: to a minute."""
MOST_REFUSED = 16
"""A server that refuses so many blocks in a row gets no more in that pass: they would be read for nothing."""
PASSES_AT_ONCE = 8
"""After so many there is a pause between two: a server that denies what it has is compared for ever."""
JUST_SECONDS = 3.0
"""Who asks for a refill again and again sees its end for so long, before that begins another one."""
INSPECTION_SECONDS = 600.0
"""Every server is compared so often also without having been away, to find orphans."""
LAG_SECONDS = 2.0
"""What lags on servers that are up is tried again so often."""
BATCH = 256
"""So many blocks are filled before the metadata server is told that they lag no more."""
COUNTS = 3
COUNT_SECONDS = 0.3
"""A server's blocks are counted so often, so far apart, before they differ: files are written meanwhile."""

log = logging.getLogger("mediator.refill")


class Refills:
    """Refills servers that came up, each at most once at a time."""

    def __init__(
        self,
        health: Health,
        metadata: Metadata,
        repairs: Repairs,
        background: Background,
        turns: Turns,
        *,
        copies_on: Callable[[Server], Awaitable[int]],
        require_compared: Callable[[], Awaitable[None]],
        is_only: bool,
    ) -> None:
        """Args:
        copies_on: tells how many blocks of copies of the metadata a server has, beside those of files.
        require_compared: returns once the metadata server knows whether its database is an older one.
        is_only: there is no other mediator, so that the lag that this one told is all there is.
        """
        self._copies_on = copies_on
        self._require_compared = require_compared
        self._turns = turns
        self._behind: set[int] = set()
        self._returned: set[int] = set()
        self._whole: set[int] = set()
        self._vouching = Vouching(
            metadata, background, require_compared, servers=len(health.servers), is_only=is_only
        )
        self._health = health
        self._metadata = metadata
        self._repairs = repairs
        self._background = background
        self._progress: dict[int, RefillProgress] = {}
        self._costs: dict[int, Costs] = {}
        self._again: set[int] = set()
        self._metadata_back = asyncio.Event()

    def progress(self, server: Server) -> dict[str, Any] | None:
        """Return the progress of a server's refill under way or the last one; None if there was none."""
        progress = self._progress.get(server.number)
        return None if progress is None else progress.as_data(time.monotonic())

    def look_or_begin(self, server: Server) -> dict[str, Any]:
        """Return the progress of a refill that runs or has just ended; else begin one."""
        progress = self._progress.get(server.number)
        if progress is None or (not progress.running and time.monotonic() - progress.ended > JUST_SECONDS):
            self.begin(server, whole=True)
        return self._progress[server.number].as_data(time.monotonic())

    def begin(self, server: Server, whole: bool = False, *, to_inspect: bool = False) -> None:
        """Begin a server's refill; one that is under way does one more pass.

        With `whole`, inventories are compared; else only what is known to lag is filled. With `to_inspect`
        it is no refill in the eyes of others before something is found.
        """
        if whole:
            self._whole.add(server.number)
        server.refilling = server.refilling or not to_inspect
        progress = self._progress.get(server.number)
        if progress is not None and progress.running:
            self._again.add(server.number)
            return
        self._progress[server.number] = RefillProgress(
            server.number,
            time.monotonic(),
            self._turns.most_bytes_per_second,
            comparison_seconds=None if progress is None else progress.comparison_seconds,
            work=WorkClock(self._costs.setdefault(server.number, Costs())),
        )
        self._background.start(self._run(server), f"refill of server {server.number}")

    def came_up(self, server: Server) -> None:
        """Refill a server that came up, and those that may have waited for a replica which it holds."""
        self._returned.add(server.number)
        for other in self._health.up:
            progress = self._progress.get(other.number)
            if other is server or (progress is not None and progress.failed):
                self.begin(other)

    def heal(self, number: int) -> None:
        """Fill what lags on a server: now if it is up and has room, else when it will."""
        self._behind.add(number)
        for server in self._health.up:
            if server.number == number and not server.full:
                self.begin(server)

    async def heal_forever(self) -> None:
        """Try again from time to time what could not be filled: less often if that takes long."""
        while True:
            await asyncio.sleep(LAG_SECONDS)
            for server in self._health.up:
                progress = self._progress.get(server.number)
                if server.number in self._behind and not server.full and _has_rested(progress):
                    self.begin(server)

    def metadata_came_up(self) -> None:
        """The metadata server was restarted."""
        self._metadata_back.set()
        self._metadata_back = asyncio.Event()
        self._vouching.metadata_came_up()

    def distrust(self) -> None:
        """The metadata is an older one: all inventories are compared."""
        self._vouching.distrust()
        for server in self._health.up:
            self.begin(server, whole=True, to_inspect=True)

    async def inspect_forever(self) -> None:
        """Compare every server's inventory from time to time."""
        while True:
            await asyncio.sleep(INSPECTION_SECONDS)
            for server in self._health.up:
                self.begin(server, whole=True, to_inspect=True)

    async def _run(self, server: Server) -> None:
        progress = self._progress[server.number]
        try:
            await self._until_nothing_lacks(server, progress)
            if not server.up:
                progress.error = f"data server {server.number} is down: {server.error}"
            elif progress.refused and not progress.error:
                progress.error = f"data server {server.number} did not take what it was sent last"
        finally:
            progress.running = server.refilling = False
            progress.ended = time.monotonic()
            self._again.discard(server.number)
        if progress.blocks_done or progress.deleted or progress.failed:
            log.info(
                "server %d: %d blocks (%d bytes) refilled, %d deleted, %d failed",
                *(
                    server.number,
                    progress.blocks_done,
                    progress.bytes_done,
                    progress.deleted,
                    progress.failed,
                ),
            )

    async def _until_nothing_lacks(self, server: Server, progress: RefillProgress) -> None:
        """Compare and mend until a comparison finds nothing; coming up again begins a refill of its own."""
        fruitless = failures = 0
        while server.up and (fruitless < MOST_FRUITLESS or server.number in self._again):
            try:
                found, mended = await self._run_once(server, progress)
            except QuorumfsError as error:
                progress.error = error.message
                failures = 0 if isinstance(error, TransportError) else failures + 1
                await self._pause_after(failures, server)
                continue
            progress.error, failures = "", 0
            if not found and server.number not in self._again:
                return
            fruitless = 0 if mended or server.number in self._again else fruitless + 1
            self._again.discard(server.number)
            if not mended or progress.passes >= PASSES_AT_ONCE:
                await asyncio.sleep(RETRY_SECONDS)

    async def _pause_after(self, failures: int, server: Server) -> None:
        """Wait before the next try: longer each time a server answers and fails, until more is wanted."""
        for _ in range(2 ** min(failures, MOST_DOUBLINGS)):
            await self._pause_until_metadata_is_back()
            if server.number in self._again or not server.up:
                return

    async def _pause_until_metadata_is_back(self) -> None:
        """Wait before the next try; less if the metadata server, which may be what failed, is back sooner."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._metadata_back.wait()

    async def _run_once(self, server: Server, progress: RefillProgress) -> tuple[int, int]:
        """Do one pass: what lags, then, if it must be, all. Returns how much was found and mended."""
        progress.passes += 1
        progress.failed = progress.refused = 0
        number = server.number
        await self._require_compared()
        # Taken before the work: who asks for more meanwhile, as when the server returns once again, gets it.
        returned, whole = number in self._returned, number in self._whole
        self._returned.discard(number)
        self._whole.discard(number)
        try:
            if returned:
                await self._note_newest_lacking(server)
            found, mended = await self._heal(server, progress, whole or number in self._whole)
            if (
                not whole
                and number not in self._whole
                and not (returned and await self._must_compare(server))
            ):
                return found, mended
            self._whole.discard(number)
            starts = self._vouching.starts
            found_more, mended_more = await self._compare_all(server, progress)
        except BaseException:
            self._returned |= {number} if returned else set()
            self._whole |= {number} if whole else set()
            raise
        if found_more:
            self._whole.add(number)
        else:
            await self._vouching.note_compared(number, starts)
        return found + found_more, mended + mended_more

    async def _note_newest_lacking(self, server: Server) -> None:
        """Have those of the blocks committed last that a server lacks remembered as lag, if they are not yet.

        A mediator that was killed could not tell who had not taken them, and the power may have failed.
        """
        recent = await self._metadata.ask(BookkeepingMethods.recent_blocks)
        self._vouching.learn(recent.complete)
        if not recent.complete:
            self._whole.add(server.number)
        for start in range(0, len(recent.blocks), PAGE):
            page = recent.blocks[start : start + PAGE]
            lacking = await server.call(self._metadata.deadline_seconds, DataMethods.sync, page)
            if lacking:
                lag = [Lag(block, [server.number]) for block in lacking]
                await self._metadata.ask(BookkeepingMethods.note_lag, lag)

    async def _must_compare(self, server: Server) -> bool:
        for count in range(COUNTS):
            if count:
                await asyncio.sleep(COUNT_SECONDS)
            counts = await self._metadata.ask(BookkeepingMethods.counts)
            lag = await self._metadata.ask(BookkeepingMethods.lag_counts)
            blocks, _ = await self._held_by(server)
            lagging = sum(each.blocks for each in lag if each.server == server.number)
            held = blocks - await self._copies_on(server)
            if not must_compare(held, counts["blocks"], lagging, counts["garbage_blocks"]):
                return False
        return True

    async def _heal(self, server: Server, progress: RefillProgress, whole: bool) -> tuple[int, int]:
        """Fill what lags, blocks with the fewest replicas first. Returns how much lagged and was filled.

        `whole`: all is compared afterwards.
        """
        self._behind.discard(server.number)
        counts = await self._metadata.ask(BookkeepingMethods.lag_counts)
        lag = sum(each.blocks for each in counts if each.server == server.number)
        lag_bytes = sum(each.bytes for each in counts if each.server == server.number)
        unknown, unknown_bytes = await self._estimate_unknown(server, lag, lag_bytes) if lag else (0, 0)
        # A comparison that finds something is followed by another one.
        progress.comparisons_left = 2 if unknown else int(whole)
        progress.found(lag + unknown, lag_bytes + unknown_bytes)
        server.refilling = server.refilling or lag > 0
        mended, after = 0, b""
        while lag and progress.refused < MOST_REFUSED:
            page = await self._metadata.ask(BookkeepingMethods.lagging, server.number, PAGE, after)
            if not page:
                break
            lacking = await self._fill_all(server, page, progress)
            mended += len(page) - len(lacking)
            if lacking:
                self._behind.add(server.number)
                after = lacking[-1].block  # the next page is of others: those may have no source for long
        return lag, mended

    async def _estimate_unknown(self, server: Server, lag: int, lag_bytes: int) -> tuple[int, int]:
        """Return how many blocks a server seems to lack besides those known to lag, and their bytes.

        A blank one does, and a comparison will find them: who looks at the progress wants to know it before.
        """
        committed = await self._metadata.ask(BookkeepingMethods.counts)
        blocks, bytes_live = await self._held_by(server)
        unknown = max(0, committed["blocks"] - lag - blocks)
        size = max(0, committed["block_bytes"] - lag_bytes - bytes_live)
        return (unknown, size) if unknown else (0, 0)

    async def _held_by(self, server: Server) -> tuple[int, int]:
        """Return how many blocks a server says to have, and their bytes. Raises QuorumfsError."""
        status = await server.call(self._metadata.deadline_seconds, CommonMethods.status)
        blocks, bytes_live = status.get("blocks"), status.get("bytes_live")
        if type(blocks) is not int or type(bytes_live) is not int:
            raise QuorumfsError(f"server {server.number} does not say how many blocks it has")
        return blocks, bytes_live

    async def _fill_all(
        self, server: Server, records: list[BlockRecord], progress: RefillProgress
    ) -> list[BlockRecord]:
        """Fill those of these blocks that a server lacks, and say so. Returns those that it lacks still."""
        left: list[BlockRecord] = []
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            begun = time.monotonic()
            asked = server.call(self._metadata.deadline_seconds, DataMethods.sync, [r.block for r in batch])
            lacking = set(await asked)
            arrived = [record for record in batch if record.block not in lacking]
            for record in arrived:
                progress.was_there(record.length)
            has = [record.block for record in arrived]
            if lacking:
                with _working(progress, begun):
                    has += await self._fill_batch(server, [r for r in batch if r.block in lacking], progress)
            await self._metadata.ask(BookkeepingMethods.clear_lag, server.number, has)
            there = set(has)
            left += [record for record in batch if record.block not in there]
        return left

    async def _fill_batch(
        self, server: Server, records: Sequence[BlockRecord], progress: RefillProgress, unknown: int = 0
    ) -> list[bytes]:
        """Fill blocks from verified replicas, each in its turn; return those that are there now.

        `unknown` counts the servers of which the metadata server does not know that they lack them.
        """
        filled: list[bytes] = []

        async def fill(record: BlockRecord, danger: int) -> None:
            if progress.refused >= MOST_REFUSED:
                self._count(progress, record, False)
                return
            async with self._turns.turn(danger + unknown, record.length):
                became = await self._repairs.fill(server, record)
            if became is Filled.DONE:
                filled.append(record.block)
                progress.refused = 0
            elif became is Filled.REFUSED:
                progress.refused += 1
            self._count(progress, record, became is Filled.DONE)

        await _each(await self._by_danger(records), fill)
        await self._repairs.undo_if_dead(filled, {server.number})
        return filled

    async def _by_danger(self, records: Sequence[BlockRecord]) -> list[tuple[BlockRecord, int]]:
        """Return blocks with how many servers are known to lack them, those that most lack first."""
        if not records:
            return []
        counts = await self._metadata.ask(BookkeepingMethods.lacking_servers, [r.block for r in records])
        return sorted(zip(records, counts, strict=True), key=lambda known: -known[1])

    async def _compare_all(self, server: Server, progress: RefillProgress) -> tuple[int, int]:
        """Compare to know the totals, then mend. Returns how much was found and mended."""
        committed = await self._metadata.ask(BookkeepingMethods.counts)
        progress.begin_comparison(committed["blocks"], time.monotonic())
        blocks = size = extras = 0
        try:
            async for difference in self._differences(server):
                progress.gone_through += difference.committed
                records = difference.lacking + difference.differing
                blocks += len(records)
                size += sum(record.length for record in records)
                extras += len(await self._collectable(difference.extra))
            progress.end_comparison(time.monotonic())
        finally:
            progress.comparing = False
        progress.found(blocks, size)
        server.refilling = server.refilling or blocks > 0
        progress.failed = 0
        progress.comparisons_left = 1 if blocks + extras else 0
        if not blocks + extras:
            return 0, 0
        before = progress.blocks_done + progress.deleted
        # To look through the pages once more is part of the price of each block that is left in them.
        with _working(progress, time.monotonic()):
            async for difference in self._differences(server):
                await self._mend(server, difference, progress)
        return blocks + extras, progress.blocks_done + progress.deleted - before

    async def _differences(self, server: Server) -> AsyncIterator[Difference]:
        """Yield the differences page by page.

        The metadata server is asked first: what it has committed, the data server has taken before, so that
        a write meanwhile does not look like a loss.
        """
        numbers = [s.number for s in self._health.servers]
        after: bytes | None = b""
        while after is not None:
            committed = await self._metadata.ask(BookkeepingMethods.blocks, after, PAGE)
            held = await server.call(self._metadata.deadline_seconds, DataMethods.inventory, after, PAGE)
            difference = compare(committed, held)
            wanted = [r for r in difference.lacking if server.number in holders(r.block, numbers)]
            garbage = set(await self._collectable([record.block for record in wanted]))
            yield difference._replace(lacking=[r for r in wanted if r.block not in garbage])
            if difference.cursor is not None and difference.cursor <= after:
                raise InternalError(f"the inventory of server {server.number} does not move on")
            after = difference.cursor

    async def _collectable(self, blocks: list[bytes]) -> list[bytes]:
        return await self._metadata.ask(BookkeepingMethods.collectable, blocks) if blocks else []

    async def _mend(self, server: Server, difference: Difference, progress: RefillProgress) -> None:
        """Fill what lacks, have a vote on what differs, delete what may be deleted."""

        async def settle(record: BlockRecord, danger: int) -> None:
            async with self._turns.turn(danger + 1, record.length):
                repaired = await outcome_of(self._repairs.repair(record.block, [server.number]))
            # A good vote alone mends nothing: the server would tell of the block as wrongly as before.
            done = isinstance(repaired, Repaired) and (
                repaired.record is None or server.number in repaired.filled | repaired.replaced
            )
            self._count(progress, record, done)

        await self._fill_batch(server, difference.lacking, progress, unknown=1)
        await _each(await self._by_danger(difference.differing), settle)
        if extras := await self._collectable(difference.extra):
            progress.deleted += await server.call(self._metadata.deadline_seconds, DataMethods.delete, extras)

    @staticmethod
    def _count(progress: RefillProgress, record: BlockRecord, done: bool) -> None:
        if done:
            progress.filled(time.monotonic(), record.length)
        else:
            progress.failed += 1


def _has_rested(progress: RefillProgress | None) -> bool:
    """Tell whether a server's last refill ended for as long ago as it took."""
    if progress is None:
        return True
    return not progress.running and time.monotonic() - progress.ended >= progress.ended - progress.begun


@contextmanager
def _working(progress: RefillProgress, begun: float) -> Iterator[None]:
    """Let the time from `begun` to the end count for the rate; pauses and comparing are left outside."""
    progress.work.begin(begun)
    try:
        yield
    finally:
        progress.work.end(time.monotonic())


async def _each(
    known: Sequence[tuple[BlockRecord, int]],
    work: Callable[[BlockRecord, int], Coroutine[Any, Any, None]],
) -> None:
    """Work on blocks, several at once, in order."""
    todo = iter(known)

    async def worker(todo: Iterator[tuple[BlockRecord, int]]) -> None:
        for record, danger in todo:
            await work(record, danger)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(IN_FLIGHT, len(known))):
            group.create_task(worker(todo))
