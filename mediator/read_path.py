"""Reading a block: one server sends the bytes, others vote on the same pieces at the same time.

As many are asked as the answer needs, and at once all the others if one of those is not good or late;
otherwise the others vote later (mediator.later_votes). The outcome is vote.read_outcome's; here are only
the calls. What all the votes reveal is repaired. It never answers bytes that do not match the witness.
One loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from mediator.ballot import Ballot
from mediator.health import Health
from mediator.latency import SizeClass, choose_byte_server, choose_voters, hedge_seconds
from mediator.later_votes import LaterVotes
from mediator.repair import Repairs
from mediator.servers import Metadata
from mediator.vote import ReadOutcome, Verdict, describe_read, may_fill, part_bytes
from wire.digest import BLOCK_BYTES, DIGEST_BYTES, piece_count
from wire.errors import BlockMissing, InvalidArgument, QuorumfsError, ReadRefused, Unavailable
from wire.messages import BLOCK_ID_BYTES, SMALL_BLOCK_BYTES, BlockPart, BlockRecord, FileMap, VotedPart
from wire.methods import DataMethods
from wire.quorum import Quorum
from wire.request import request_of

LAST_VOTES_SECONDS = 0.05
"""A refusal waits so long for one more vote, so that it can say how all replicas stand."""
HEDGE_EVERY = 16
"""So many reads have the same delay of a second request: what the newest 64 took changes little meanwhile."""
OPEN_SECONDS = 0.25
"""An open waits so long for the bytes that may come with it: it is not a read, and must not fail as one."""


def check_request(witness: BlockRecord, first_piece: int, pieces: int) -> None:
    """Raise InvalidArgument for pieces that no block has."""
    if len(witness.block) != BLOCK_ID_BYTES or len(witness.digest) != DIGEST_BYTES:
        raise InvalidArgument("a block id has 16 bytes and a digest 32")
    if not 0 <= witness.length <= BLOCK_BYTES:
        raise InvalidArgument(f"a block of {witness.length} bytes: it has at most {BLOCK_BYTES}")
    if pieces < 0 or not 0 <= first_piece < max(1, piece_count(witness.length)):
        raise InvalidArgument(
            f"pieces {first_piece} and {pieces} on: the block has {piece_count(witness.length)} pieces"
        )


def only_small_block(file: FileMap) -> BlockRecord | None:
    """Return the block of a file that has one extent, in a small block; else None."""
    if not file.complete or len(file.extents) != 1:
        return None
    extent = file.extents[0]
    if extent.block_length > SMALL_BLOCK_BYTES:
        return None
    return BlockRecord(extent.block, extent.block_length, extent.digest)


class ReadPath:
    """Reads blocks by vote."""

    def __init__(
        self,
        quorum: Quorum,
        health: Health,
        metadata: Metadata,
        repairs: Repairs,
        count_calls: Callable[[], int],
        vote_seconds: float,
    ) -> None:
        numbers = [server.number for server in health.servers]
        self.later_votes: LaterVotes[Ballot] = LaterVotes(numbers, count_calls, self._ask_later)
        self._quorum = quorum
        self._health = health
        self._metadata = metadata
        self._repairs = repairs
        self._vote_seconds = vote_seconds
        self._turn = 0
        self._hedges: dict[SizeClass, tuple[int, float]] = {}
        """By class of reads: until which turn this delay of a second request holds."""
        self.votes = 0
        """How many votes on blocks were held to answer reads."""

    async def read_block(self, witness: BlockRecord, first_piece: int, pieces: int) -> BlockPart:
        """Return verified pieces of a block once Qr replicas are good.

        Raises:
            ReadRefused: they cannot be; `detail` says who voted what, and "reason": "superseded" when the
                file has changed meanwhile, so that a new file map may help.
            Unavailable: the good replicas sent no bytes; or replicas must be filled first, and the metadata
                server cannot be asked for the witness.
        """
        check_request(witness, first_piece, pieces)
        ballot = await self._decide(witness, first_piece, pieces)
        if ballot.outcome is ReadOutcome.REFUSE and Verdict.DOWN in ballot.verdicts.values():
            # It would be refused for servers that are down: make sure that they still are.
            await self._health.recheck()
            if ballot.has_returned:
                ballot = await self._decide(witness, first_piece, pieces)
        if ballot.outcome is not ReadOutcome.ANSWER:
            raise await self._refusal(ballot)
        if (part := ballot.take_part()) is None:
            raise Unavailable("the replicas that voted good stopped answering before they sent the bytes")
        if not ballot.unanimous:
            ballot.when_complete(partial(self._repair_losers, ballot))
            self._let_the_others_vote(ballot)
        return part

    def _let_the_others_vote(self, ballot: Ballot) -> None:
        size = part_bytes(ballot.witness.length, *ballot.pieces)
        for number in sorted(ballot.unasked):  # a copy: where too many votes wait, it is asked for right now
            self.later_votes.add(number, size, ballot)

    def _ask_later(self, number: int, ballots: list[Ballot], end: Callable[[], None]) -> None:
        """Ask a server by one call for its votes on several blocks, as far as they are still wanted."""
        ballots = [ballot for ballot in ballots if ballot.calls_for(number)]
        if not ballots:
            end()
            return
        begun = time.monotonic()

        def answered(answer: list[bytes | None] | QuorumfsError) -> None:
            seconds = (time.monotonic() - begun) / len(ballots)
            if not isinstance(answer, QuorumfsError) and len(answer) != len(ballots):
                answer = Unavailable(f"{len(answer)} votes came, not {len(ballots)}")
            for index, ballot in enumerate(ballots):
                said = answer if isinstance(answer, QuorumfsError) else answer[index]
                ballot.voted(number, BlockMissing() if said is None else said, seconds)
            end()

        parts = [VotedPart(ballot.witness.block, *ballot.pieces) for ballot in ballots]
        server = ballots[0].servers[number]
        server.begin(self._vote_seconds, request_of(DataMethods.digests, parts), answered)

    async def read_small(self, file: FileMap) -> BlockPart | None:
        """Return the bytes of a file that is one small block; None if it is not, or without a good vote."""
        witness = only_small_block(file)
        if witness is None:
            return None
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await self.read_block(witness, 0, 0)
        except (QuorumfsError, TimeoutError):
            return None

    async def _decide(self, witness: BlockRecord, first_piece: int, pieces: int) -> Ballot:
        """Vote until the outcome is known: with verified bytes, or refused."""
        self.votes += 1
        ballot = Ballot(
            self._quorum,
            self._repairs.servers_of(witness.block),
            witness,
            first_piece,
            pieces,
            self._vote_seconds,
        )
        ballot.begin(*self._choose(ballot))
        hedge, late, filling = self._hedge_seconds(ballot), False, False
        while (outcome := ballot.outcome) is not ReadOutcome.REFUSE:
            if outcome is ReadOutcome.ANSWER and ballot.part is not None:
                break
            if outcome is ReadOutcome.FILL and not await self._fill(ballot):
                break
            if not ballot.bytes_pending and ballot.part is None:
                if not ballot.ask_another():
                    break
            elif outcome is not ReadOutcome.FILL and not await ballot.change(hedge):
                if not late:
                    ballot.note_late(hedge)
                    ballot.ask_rest()
                elif not filling and may_fill(self._quorum, ballot.verdicts.values()):
                    filling = True
                    self._fill_meanwhile(ballot)
                if ballot.part is None and (not late or ballot.asked_only_silent_ones):
                    ballot.ask_another()
                late = True
        return ballot

    def _choose(self, ballot: Ballot) -> tuple[int | None, list[int]]:
        """Return who is asked for the bytes, if any server is up, and who votes with them."""
        servers = [server for server in ballot.servers.values() if server.state == "up"]
        if len(servers) < self._quorum.read:
            servers = [server for server in ballot.servers.values() if server.up]
        if not servers:
            return None, []
        self._turn += 1
        size, wanted = ballot.size, self._quorum.read - 1
        busy = {s.number: s.open_calls for s in servers}
        byte_server = choose_byte_server({s.number: s.reads[size].median for s in servers}, busy, self._turn)
        if not wanted:
            return byte_server, []
        votes = {s.number: s.votes[size].median for s in servers if s.number != byte_server}
        return byte_server, choose_voters(votes, busy, self._turn, wanted)

    def _hedge_seconds(self, ballot: Ballot) -> float:
        """Return after how long the others are asked. It is worked out once for HEDGE_EVERY reads."""
        size = ballot.size
        until, seconds = self._hedges.get(size, (0, 0.0))
        if self._turn >= until:
            seconds = hedge_seconds([s.reads[size].p95 for s in ballot.servers.values() if s.up])
            self._hedges[size] = self._turn + HEDGE_EVERY, seconds
        return seconds

    async def _fill(self, ballot: Ballot) -> bool:
        """Fill the missing replicas and count those that were; False if the block is no longer the file's."""
        repaired = await self._repairs.repair(ballot.witness.block)
        if repaired.record != ballot.witness:
            return False
        ballot.count_filled(repaired.verdicts)
        return True

    def _fill_meanwhile(self, ballot: Ballot) -> None:
        """Fill the replicas that are known to be missing, and wait for no silent server."""

        def count(done: asyncio.Task[set[int]]) -> None:
            if not done.cancelled() and done.exception() is None:
                ballot.count_filled(dict.fromkeys(done.result(), Verdict.GOOD))

        good, missing = ballot.of_kind(Verdict.GOOD), ballot.of_kind(Verdict.MISSING)
        self._repairs.begin_filling(ballot.witness, good, missing).add_done_callback(count)

    def _repair_losers(self, ballot: Ballot) -> None:
        """Have repaired what the votes reveal."""
        if {Verdict.CORRUPT, Verdict.MISSING} & set(ballot.verdicts.values()):
            losers = [number for number, v in ballot.verdicts.items() if v is Verdict.CORRUPT]
            self._repairs.request(ballot.witness.block, losers)

    async def _refusal(self, ballot: Ballot) -> ReadRefused:
        while not ballot.complete and await ballot.change(LAST_VOTES_SECONDS):
            pass
        votes = {str(number): str(verdict or "pending") for number, verdict in ballot.verdicts.items()}
        superseded = await self._is_superseded(ballot)
        detail = {
            "block": ballot.witness.block.hex(),
            "votes": votes,
            "good": list(votes.values()).count(Verdict.GOOD),
            "needed": self._quorum.read,
            "reason": "superseded" if superseded else "quorum",
        }
        message = describe_read(self._quorum, ballot.verdicts)
        if superseded:
            message = f"the block was superseded: the file has changed meanwhile ({message})"
        return ReadRefused(message, detail)

    async def _is_superseded(self, ballot: Ballot) -> bool:
        """Tell whether a new file map may name another block: this one is gone or no longer the file's."""
        try:
            (record,) = await self._metadata.live([ballot.witness.block])
        except QuorumfsError:
            return set(ballot.verdicts.values()) - {Verdict.DOWN, None} == {Verdict.MISSING}
        return record != ballot.witness
