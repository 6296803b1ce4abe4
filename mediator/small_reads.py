"""Reading several small files at once: one question to the metadata server, one to each data server.

Each data server is asked for the bytes of a share of the blocks and for its vote on all the others, so that
each block has the vote that a read of it alone would have. A block whose vote is not plainly good by these
answers comes without bytes: reading it alone (mediator.read_path) waits, fills and tells the reason. What
the votes reveal is repaired. It never answers bytes that do not match the witness. One loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from mediator.latency import split_by_speed
from mediator.repair import Repairs
from mediator.servers import Metadata, Server
from mediator.vote import ReadOutcome, Verdict, judge, read_outcome
from wire.errors import QuorumfsError
from wire.messages import BlockPart, BlockRecord, FileMap, Opened, SmallReplicas
from wire.methods import BookkeepingMethods, DataMethods
from wire.quorum import Quorum
from wire.request import request_of, settle

MOST_SECONDS = 0.2
"""After so long, what is not decided comes without bytes: nobody waits for these votes."""


def record_of(file: FileMap) -> BlockRecord:
    """Return the only block of a small file."""
    extent = file.extents[0]
    return BlockRecord(extent.block, extent.block_length, extent.digest)


class SmallBallot:
    """The votes on one small block, as they come in, and who is to send its bytes."""

    __slots__ = ("part", "sender", "verdicts", "witness")

    def __init__(self, witness: BlockRecord, servers: Iterable[int], sender: int | None) -> None:
        self.witness = witness
        self.sender = sender
        self.verdicts: dict[int, Verdict | None] = dict.fromkeys(servers)
        self.part: BlockPart | None = None

    def count(self, number: int, answer: bytes | None) -> None:
        """Count what a server said: the bytes if it is the sender, else a digest; None if it lacks them."""
        if answer is None:
            self.verdicts[number] = Verdict.MISSING
        elif number != self.sender:
            self.verdicts[number] = judge(self.witness, answer)
        else:
            part = BlockPart(self.witness.length, b"", answer)
            self.verdicts[number] = judge(self.witness, part)
            if self.verdicts[number] is Verdict.GOOD:
                self.part = part

    def voted_part(self, quorum: Quorum) -> BlockPart | None:
        """Return the bytes if Qr replicas are good."""
        outcome = read_outcome(quorum, self.verdicts.values())
        return self.part if outcome is ReadOutcome.ANSWER else None

    @property
    def has_losers(self) -> bool:
        verdicts = self.verdicts.values()
        return Verdict.CORRUPT in verdicts or Verdict.MISSING in verdicts


class SmallBallots:
    """The votes on several small blocks: one message to each server that holds some of them."""

    def __init__(self, quorum: Quorum, repairs: Repairs, ballots: Sequence[SmallBallot]) -> None:
        self._quorum, self._repairs = quorum, repairs
        self._ballots = ballots
        self._pending: set[int] = set()
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, servers: Mapping[int, Server], vote_seconds: float) -> None:
        """Ask all servers that are up; those that are down have voted so."""
        self._pending = {number for number, server in servers.items() if server.up}
        for number, server in servers.items():
            own = [ballot for ballot in self._ballots if number in ballot.verdicts]
            if number in self._pending:
                sent = [ballot for ballot in own if ballot.sender == number]
                voted = [ballot for ballot in own if ballot.sender != number]
                request = request_of(
                    DataMethods.read_small,
                    [ballot.witness.block for ballot in sent],
                    [ballot.witness.block for ballot in voted],
                )
                begun = time.monotonic()
                server.begin(vote_seconds, request, partial(self._answered, server, begun, sent, voted))
            else:
                for ballot in own:
                    ballot.verdicts[number] = Verdict.DOWN
        self._look()

    def _answered(
        self,
        server: Server,
        begun: float,
        sent: Sequence[SmallBallot],
        voted: Sequence[SmallBallot],
        answer: SmallReplicas | QuorumfsError,
    ) -> None:
        number = server.number
        self._pending.discard(number)
        server.reads["several"].note(time.monotonic() - begun)
        if isinstance(answer, QuorumfsError) or not _fits(answer, sent, voted):
            for ballot in (*sent, *voted):
                ballot.verdicts[number] = Verdict.DOWN
        else:
            for ballot, said in zip((*sent, *voted), (*answer.data, *answer.digests), strict=True):
                ballot.count(number, said)
        self._look()

    def _look(self) -> None:
        """Tell who waits once every block has its bytes by vote, or no answer is missing; then repair."""
        if not self._decided.done() and (
            not self._pending or all(ballot.voted_part(self._quorum) for ballot in self._ballots)
        ):
            self._decided.set_result(None)
        if not self._pending:
            for ballot in self._ballots:
                if ballot.has_losers:
                    self._repairs.request(ballot.witness.block)

    async def parts(self, seconds: float) -> list[BlockPart | None]:
        """Return the bytes of each block, None where the vote was not plainly good in time."""
        timer = asyncio.get_running_loop().call_later(seconds, settle, self._decided, None)
        try:
            await self._decided
        finally:
            timer.cancel()
        return [ballot.voted_part(self._quorum) for ballot in self._ballots]

    @property
    def pending(self) -> frozenset[int]:
        """The servers that have not answered yet."""
        return frozenset(self._pending)


def _fits(answer: SmallReplicas, sent: Sequence[SmallBallot], voted: Sequence[SmallBallot]) -> bool:
    return len(answer.data) == len(sent) and len(answer.digests) == len(voted)


class SmallReads:
    """Reads several small files by votes that are held at once."""

    def __init__(self, quorum: Quorum, metadata: Metadata, repairs: Repairs, vote_seconds: float) -> None:
        self._quorum, self._metadata, self._repairs = quorum, metadata, repairs
        self._vote_seconds = vote_seconds
        self._turn = 0
        self.votes = 0
        """How many votes on blocks were held."""

    async def read(self, inodes: list[int]) -> list[Opened | None]:
        """Return each file with its bytes as far as the votes are plainly good; None for what is not small.

        Raises:
            QuorumfsError: the metadata server could not be asked; InvalidArgument, for too many.
        """
        files = await self._metadata.ask(BookkeepingMethods.small_files, inodes)
        found = [(index, file) for index, file in enumerate(files) if file is not None]
        if found:
            parts = await self._vote([record_of(file.map) for _, file in found])
            for (index, file), part in zip(found, parts, strict=True):
                files[index] = file._replace(part=part)
        return files

    async def _vote(self, records: Sequence[BlockRecord]) -> list[BlockPart | None]:
        self.votes += len(records)
        servers: dict[int, Server] = {}
        ballots: dict[bytes, SmallBallot] = {}
        for record in records:
            if record.block not in ballots:
                holders = {server.number: server for server in self._repairs.servers_of(record.block)}
                servers.update(holders)
                ballots[record.block] = SmallBallot(record, holders, None)
        self._share(servers, ballots.values())
        votes = SmallBallots(self._quorum, self._repairs, list(ballots.values()))
        votes.begin(servers, self._vote_seconds)
        parts = dict(zip(ballots, await votes.parts(MOST_SECONDS), strict=True))
        for number in votes.pending:
            if None in parts.values():
                servers[number].reads["several"].note(MOST_SECONDS)  # others are to send the next bytes
        return [parts[record.block] for record in records]

    def _share(self, servers: Mapping[int, Server], ballots: Iterable[SmallBallot]) -> None:
        """Let those of the servers that are about as fast as the fastest send the bytes in turn.

        A slow one is asked for votes, and so measured, all the same.
        """
        usable = [server for server in servers.values() if server.state == "up"]
        usable = usable or [server for server in servers.values() if server.up]
        near, far = split_by_speed({server.number: server.reads["several"].median for server in usable})
        for ballot in ballots:
            own = [number for number in near if number in ballot.verdicts] or far
            self._turn += 1
            ballot.sender = own[self._turn % len(own)] if own else None
