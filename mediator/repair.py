"""Repairing one block: the plan (pure), and carrying it out.

Heals: replicas that are missing, and replicas that lost a vote which the good ones won. Refuses: a block
without any good replica (nothing to heal from), a block that fewer than Qr replicas vouch for (only its
missing replicas are filled: that overwrites nothing), a block that is garbage or unknown by now. Never a
source: a replica whose bytes were not just verified against the witness that the metadata server gave.
A good replica is never a target, but for one that somebody doubts: its bytes are right, yet not what its
server has recorded of them. There the server itself looks, and leaves alone what is good in all. One event
loop; several mediators may repair the same block at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from mediator.fanout import Background, outcome_of
from mediator.health import Health
from mediator.latency import choose_byte_server, hedge_seconds, size_class
from mediator.ledger import Ledger
from mediator.placement import holders
from mediator.servers import Metadata, Server
from mediator.vote import Progress, Verdict, describe_read, judge, tally
from wire.digest import PIECE_BYTES
from wire.errors import BlockDamaged, NoSpace, QuorumfsError, TransportError
from wire.messages import BlockPart, BlockRecord
from wire.methods import DataMethods
from wire.quorum import Quorum

IN_FLIGHT = 8
"""So many blocks are repaired at once; each may hold 1 MiB in memory."""
MOST_WAITING = 4096
"""More requests than that are dropped: the next read of the block asks again."""
MOST_UNSETTLED = 1024
"""So many of the newest blocks are known that have replicas which could not be repaired yet."""
NOT_AS_RECORDED = "its bytes are right, but not the length or the digests that its server recorded of them"

log = logging.getLogger("mediator.repair")


class RepairPlan(NamedTuple):
    """What to do, safest first: fill the missing, which overwrites nothing; then replace the losers."""

    sources: list[int]
    fill: list[int]
    replace: list[int]


def plan_repair(quorum: Quorum, verdicts: Mapping[int, Verdict], doubted: Collection[int] = ()) -> RepairPlan:
    """Plan from the verdicts of all replicas of one block.

    Losers are replaced only if the good replicas, with those that are filled first, make a read quorum:
    what a read refuses is not settled behind the reader's back. Those that are good but `doubted` are
    replaced if the others make one: a read of some pieces may count them as corrupt.
    """
    by_kind = {
        kind: sorted(number for number, verdict in verdicts.items() if verdict is kind) for kind in Verdict
    }
    good, missing = by_kind[Verdict.GOOD], by_kind[Verdict.MISSING]
    if not good:
        return RepairPlan([], [], [])

    def vouched(replicas: list[int]) -> bool:
        return tally(quorum.read, len(replicas) + len(missing), pending=0) is Progress.REACHED

    losers = by_kind[Verdict.CORRUPT] if vouched(good) else []
    dubious = [number for number in good if number in doubted]
    if not vouched([number for number in good if number not in doubted]):
        dubious = []
    return RepairPlan(good, missing, losers + dubious)


class Filled(Enum):
    """What became of a block that a server was to be given."""

    DONE = "done"
    REFUSED = "refused"
    """The server did not take it, or not in time."""
    NO_SOURCE = "no source"
    """No server that is up has it whole."""


@dataclass
class Repaired:
    """What became of one repair. `verdicts` are the replicas' verdicts afterwards."""

    record: BlockRecord | None
    """The block as the metadata server knows it; None if it is garbage or unknown."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    filled: set[int] = field(default_factory=set)
    replaced: set[int] = field(default_factory=set)
    digests: dict[int, str] = field(default_factory=dict)
    """What each replica's digest was before, in hex, where it told one."""


@dataclass
class RepairCounts:
    """What all repairs since the start came to."""

    done: int = 0
    filled: int = 0
    quarantined: int = 0
    failed: int = 0
    dropped: int = 0


class Repairs:
    """Repairs blocks, each at most once at a time, a bounded number at once."""

    def __init__(
        self,
        quorum: Quorum,
        health: Health,
        metadata: Metadata,
        background: Background,
        ledger: Ledger,
        vote_seconds: float,
    ) -> None:
        self._ledger = ledger
        self.quorum = quorum
        self.counts = RepairCounts()
        self._health = health
        self._by_number = {server.number: server for server in health.servers}
        self._numbers = list(self._by_number)
        self._metadata = metadata
        self._background = background
        self._vote_seconds = vote_seconds
        self._running: dict[bytes, asyncio.Task[Repaired]] = {}
        self._doubted: dict[bytes, set[int]] = {}
        """Of the blocks that are being repaired, whose replicas are doubted."""
        self._unsettled: OrderedDict[bytes, frozenset[int]] = OrderedDict()
        """Blocks that may be repaired when servers are back, or have room, and whose replicas are doubted."""
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._filling: dict[tuple[BlockRecord, frozenset[int]], asyncio.Task[set[int]]] = {}
        self._filling_slots = asyncio.Semaphore(IN_FLIGHT)
        """Of their own: repairs wait for the votes of silent servers, which a read must not wait for."""
        self._turn = 0

    def status(self) -> dict[str, Any]:
        """Return the counts, and how many repairs are under way."""
        return {**vars(self.counts), "in_flight": len(self._running)}

    def request(self, block: bytes, doubted: Collection[int] = ()) -> None:
        """Repair a block in the background. `doubted`: as for `repair`.

        While the metadata server is away, which knows the witness, it is remembered for when that is back.
        """
        if not self._health.metaserver.up:
            self._remember(block, doubted)
        elif len(self._running) < MOST_WAITING:
            self._start(block, doubted)
        else:
            self.counts.dropped += 1

    def try_again(self) -> None:
        """A server came up, or has room again: what could not be repaired for lack of it perhaps can be."""
        for block, doubted in list(self._unsettled.items()):
            self.request(block, doubted)

    async def repair(self, block: bytes, doubted: Collection[int] = ()) -> Repaired:
        """Repair a block now (or wait for the repair that is under way) and tell what became of it.

        Args:
            block: its id.
            doubted: servers whose replicas were seen to be wrong in what a vote on the whole block, which
                computes all digests anew, does not see: in the digests or the length that were recorded.

        Raises:
            QuorumfsError: the metadata server could not be asked for the witness.
        """
        return await asyncio.shield(self._start(block, doubted))

    def _start(self, block: bytes, doubted: Collection[int]) -> asyncio.Task[Repaired]:
        if block not in self._running:
            self._doubted[block] = set()
            task = self._background.start(self._run(block), f"repair of block {block.hex()}")
            self._running[block] = task
            task.add_done_callback(lambda _: self._ended(block))
        self._doubted[block].update(doubted)
        return self._running[block]

    def _ended(self, block: bytes) -> None:
        del self._running[block], self._doubted[block]

    async def _run(self, block: bytes) -> Repaired:
        async with self._slots:
            try:
                (record,) = await self._metadata.live([block])
            except QuorumfsError:  # it is away, and nobody had noticed yet
                self._remember(block, self._doubted[block])
                raise
            if record is None:
                self._unsettled.pop(block, None)
                return Repaired(None)
            digests: dict[int, str] = {}
            verdicts = await self.survey(record, digests)
            repaired = Repaired(record, verdicts, digests=digests)
            note = f"lost the vote against {record.digest.hex()}: {describe_read(self.quorum, verdicts)}"
            doubted = frozenset(self._doubted[block])
            data = await self._verified_bytes(record, verdicts, doubted)
            if data is not None:
                await self._carry_out(repaired, data, note, doubted)
            self._note_unsettled(block, verdicts, doubted)
            if data is not None:
                await self.undo_if_dead([record.block], repaired.filled)
            return repaired

    def _note_unsettled(
        self, block: bytes, verdicts: Mapping[int, Verdict], doubted: Collection[int]
    ) -> None:
        """Remember a block that has a corrupt replica still, and may have a good one."""
        self._unsettled.pop(block, None)
        kinds = set(verdicts.values())
        if Verdict.CORRUPT in kinds and kinds & {Verdict.GOOD, Verdict.DOWN}:
            self._remember(block, doubted)

    def _remember(self, block: bytes, doubted: Collection[int]) -> None:
        self._unsettled[block] = self._unsettled.get(block, frozenset()).union(doubted)
        if len(self._unsettled) > MOST_UNSETTLED:
            self._unsettled.popitem(last=False)

    async def survey(self, record: BlockRecord, digests: dict[int, str] | None = None) -> dict[int, Verdict]:
        """Have all replicas vote on the whole block; return the verdict of each of its N servers.

        Args:
            record: the block.
            digests: where to note what each replica voted, in hex.
        """

        async def vote(server: Server) -> Verdict:
            if not server.up:
                return Verdict.DOWN
            asked = server.call(self._vote_seconds, DataMethods.digest, record.block, 0, 0)
            answer = await outcome_of(asked)
            if digests is not None and isinstance(answer, bytes):
                digests[server.number] = answer.hex()
            return judge(record, answer)

        servers = self.servers_of(record.block)
        return dict(zip([s.number for s in servers], await asyncio.gather(*map(vote, servers)), strict=True))

    def servers_of(self, block: bytes) -> list[Server]:
        """Return the data servers that hold a block."""
        return [self._by_number[number] for number in holders(block, self._numbers)]

    async def _verified_bytes(
        self, record: BlockRecord, verdicts: dict[int, Verdict], doubted: frozenset[int]
    ) -> bytes | None:
        """Return the block from a replica that voted good; a vote that its bytes belie is corrected."""
        plan = plan_repair(self.quorum, verdicts, doubted)
        if not plan.fill and not plan.replace:
            return None
        failed: dict[int, QuorumfsError] = {}
        data = await self._first_whole([self._by_number[number] for number in plan.sources], record, failed)
        verdicts.update({number: judge(record, error) for number, error in failed.items()})
        return data

    async def _first_whole(
        self, sources: Collection[Server], record: BlockRecord, failed: dict[int, QuorumfsError]
    ) -> bytes | None:
        """Return the block from the first server that sends it right, the fast ones asked in turn; else None.

        One that is late is not waited for alone: the next one is asked too.

        Args:
            sources: who may have it.
            record: the block.
            failed: where to note what came of those that did not send it.
        """
        size = size_class(record.length, 0, 0, PIECE_BYTES)
        left = {server.number: server for server in sources}
        late_seconds = hedge_seconds([server.reads[size].p95 for server in sources])
        asked: dict[asyncio.Task[BlockPart | QuorumfsError], int] = {}
        try:
            while left or asked:
                if left:
                    self._turn += 1
                    number = choose_byte_server(
                        {n: s.reads[size].median for n, s in left.items()},
                        {n: s.open_calls for n, s in left.items()},
                        self._turn,
                    )
                    asked[asyncio.create_task(self._get_whole(left.pop(number), record))] = number
                done, _ = await asyncio.wait(
                    asked, timeout=late_seconds if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    number, answer = asked.pop(task), task.result()
                    if isinstance(answer, BlockPart):
                        return bytes(answer.data)
                    failed[number] = answer
            return None
        finally:
            for task in asked:
                task.cancel()

    async def _get_whole(self, server: Server, record: BlockRecord) -> BlockPart | QuorumfsError:
        """Return the block from a server, verified. Silence counts as its deadline, or until given up."""
        begun = time.monotonic()
        reads = server.reads[size_class(record.length, 0, 0, PIECE_BYTES)]
        try:
            answer = await outcome_of(server.call(self._vote_seconds, DataMethods.get, record.block, 0, 0))
        except asyncio.CancelledError:
            reads.note(time.monotonic() - begun)
            raise
        if isinstance(answer, BlockPart):
            reads.note(time.monotonic() - begun)
        elif isinstance(answer, TransportError):
            reads.note(self._vote_seconds)
        if isinstance(answer, BlockPart) and judge(record, answer) is not Verdict.GOOD:
            return BlockDamaged(f"server {server.number} sent bytes that do not match the witness")
        return answer

    async def _carry_out(self, repaired: Repaired, data: bytes, note: str, doubted: frozenset[int]) -> None:
        assert repaired.record is not None
        filling = plan_repair(self.quorum, repaired.verdicts, doubted).fill
        await asyncio.gather(
            *(self._send(self._by_number[number], repaired, data, note) for number in filling)
        )
        # Planned anew: a replica that could not be filled does not help to outvote the losers.
        unfilled = {number: Verdict.DOWN for number in filling if number not in repaired.filled}
        for number in plan_repair(self.quorum, {**repaired.verdicts, **unfilled}, doubted).replace:
            was_good = repaired.verdicts[number] is Verdict.GOOD
            await self._send(self._by_number[number], repaired, data, NOT_AS_RECORDED if was_good else note)

    async def _send(self, server: Server, repaired: Repaired, data: bytes, note: str) -> None:
        record = repaired.record
        assert record is not None
        answer = await outcome_of(
            server.call(self._vote_seconds, DataMethods.repair, record.block, record.digest, data, note)
        )
        if isinstance(answer, QuorumfsError):
            self.counts.failed += 1
            level = logging.DEBUG if isinstance(answer, NoSpace) and server.full else logging.WARNING
            log.log(level, "block %s on server %d: %s", record.block.hex(), server.number, answer.message)
            if isinstance(answer, NoSpace):
                server.full = True
            return
        self._count(answer)
        if answer != "good":
            verdict = Verdict.MISSING if answer == "filled" else Verdict.CORRUPT
            before = repaired.digests.get(server.number, "")
            self._ledger.note(record.block, server.number, verdict, before, record.digest.hex(), note)
        repaired.verdicts[server.number] = Verdict.GOOD
        if answer == "filled":
            repaired.filled.add(server.number)
        elif answer == "replaced":
            repaired.replaced.add(server.number)

    def _count(self, answer: str) -> None:
        self.counts.done += 1
        self.counts.filled += answer == "filled"
        self.counts.quarantined += answer == "replaced"

    async def fill(self, target: Server, record: BlockRecord) -> Filled:
        """Put a block that `target` lacks there, from a verified replica. Returns what became of it.

        Args:
            target: the server that is being refilled.
            record: the block as the metadata server gave it.
        """
        failed: dict[int, QuorumfsError] = {}
        sources = [s for s in self.servers_of(record.block) if s.up and s is not target]
        data = await self._first_whole(sources, record, failed)
        if any(isinstance(error, BlockDamaged) for error in failed.values()):
            self.request(record.block)
        if data is None:
            self.counts.failed += 1
            return Filled.NO_SOURCE
        repaired = Repaired(record)
        await self._send(target, repaired, data, "refilled")
        return Filled.DONE if target.number in repaired.verdicts else Filled.REFUSED

    def begin_filling(
        self, witness: BlockRecord, sources: Collection[int], targets: Collection[int]
    ) -> asyncio.Task[set[int]]:
        """Fill replicas that were found missing, without a vote; the task tells which have it now.

        None has if the metadata server cannot be asked for the witness, or knows another one.

        Args:
            witness: the block as the reader knows it.
            sources: servers that have voted good.
            targets: servers that have said that they lack it.
        """
        which = (witness, frozenset(targets))
        if which not in self._filling:
            work = self._fill_missing(witness, sources, targets)
            task = self._background.start(work, f"filling of block {witness.block.hex()}")
            self._filling[which] = task
            task.add_done_callback(lambda _: self._filling.pop(which))
        return self._filling[which]

    async def _fill_missing(
        self, witness: BlockRecord, sources: Collection[int], targets: Collection[int]
    ) -> set[int]:
        async with self._filling_slots:
            live = await outcome_of(self._metadata.live([witness.block]))
            if live != [witness]:
                return set()
            data = await self._first_whole([self._by_number[number] for number in sources], witness, {})
            if data is None:
                return set()
            repaired = Repaired(witness)
            note = "missing at a read"
            await asyncio.gather(
                *(self._send(self._by_number[number], repaired, data, note) for number in targets)
            )
            await self.undo_if_dead([witness.block], repaired.filled)
            return set(repaired.verdicts)

    async def undo_if_dead(self, blocks: list[bytes], numbers: set[int]) -> None:
        """Delete what was just filled on these servers if it became garbage in the meantime.

        The collector may have deleted a block there just before it was filled, and would not look again.
        """
        if not blocks or not numbers:
            return
        live = await self._metadata.live(blocks)
        dead = [block for block, record in zip(blocks, live, strict=True) if record is None]
        for server in self._health.servers if dead else ():
            if server.number in numbers:
                await outcome_of(server.call(self._vote_seconds, DataMethods.delete, dead))
