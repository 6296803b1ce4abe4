"""Reading a block: one server sends the bytes, all others vote on the same pieces at the same time.

The outcome is vote.read_outcome's; here are only the calls. Stragglers finish after the answer, and
what all the votes reveal is repaired. It never answers bytes that do not match the witness. One loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mediator.health import Health
from mediator.latency import choose_byte_server, hedge_seconds, size_class
from mediator.repair import Repairs
from mediator.servers import Metadata, Server
from mediator.vote import ReadOutcome, Verdict, describe_read, judge, read_outcome
from wire.digest import BLOCK_BYTES, DIGEST_BYTES, PIECE_BYTES, piece_count
from wire.errors import InvalidArgument, QuorumfsError, ReadRefused, TransportError, Unavailable
from wire.messages import BLOCK_ID_BYTES, BlockPart, BlockRecord, FileMap
from wire.methods import DataMethods
from wire.quorum import Quorum
from wire.request import request_of, settle

LAST_VOTES_SECONDS = 0.05
"""A refusal waits so long for one more vote, so that it can say how all replicas stand."""
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
    """Return the block of a file that has one extent, in a block of at most one piece; else None."""
    if not file.complete or len(file.extents) != 1:
        return None
    extent = file.extents[0]
    if extent.block_length > PIECE_BYTES:
        return None
    return BlockRecord(extent.block, extent.block_length, extent.digest)


class Ballot:
    """The votes on some pieces of one block, as they come in."""

    def __init__(
        self,
        quorum: Quorum,
        servers: Sequence[Server],
        witness: BlockRecord,
        first_piece: int,
        pieces: int,
        vote_seconds: float,
    ) -> None:
        self.quorum = quorum
        self.servers = {server.number: server for server in servers}
        self.witness = witness
        self.pieces = (first_piece, pieces)
        self.size = size_class(witness.length, first_piece, pieces, PIECE_BYTES)
        self.verdicts: dict[int, Verdict | None] = dict.fromkeys(self.servers)
        self.part: BlockPart | None = None
        self.asked_for_bytes: set[int] = set()
        self.bytes_pending = 0
        self._changed = False
        self._waiter: asyncio.Future[None] | None = None
        self._at_the_end: Callable[[], None] | None = None
        self._vote_seconds = vote_seconds

    @property
    def outcome(self) -> ReadOutcome:
        return read_outcome(self.quorum, list(self.verdicts.values()))

    @property
    def complete(self) -> bool:
        return None not in self.verdicts.values()

    @property
    def unanimous(self) -> bool:
        return set(self.verdicts.values()) == {Verdict.GOOD}

    @property
    def has_returned(self) -> bool:
        """Whether a server that voted down is up by now."""
        return any(v is Verdict.DOWN and self.servers[number].up for number, v in self.verdicts.items())

    def begin(self, byte_server: int | None) -> None:
        """Ask all servers that are up, one of them for the bytes; those that are down have voted so."""
        vote = request_of(DataMethods.digest, self.witness.block, *self.pieces)
        for number, server in self.servers.items():
            if not server.up:
                self.verdicts[number] = Verdict.DOWN
            elif number == byte_server:
                self.ask_for_bytes(number)
            else:
                server.begin(self._vote_seconds, vote, partial(self._voted, number))

    def _voted(self, number: int, answer: bytes | QuorumfsError) -> None:
        if self.verdicts[number] is None:
            self.verdicts[number] = judge(self.witness, answer, *self.pieces)
        self._note_change(self.outcome is not ReadOutcome.WAIT)

    def ask_for_bytes(self, number: int) -> None:
        """Ask a server for the pieces; what it sends is its vote, whatever it voted before."""
        self.asked_for_bytes.add(number)
        self.bytes_pending += 1
        request = request_of(DataMethods.get, self.witness.block, *self.pieces)
        self.servers[number].begin(self._vote_seconds, request, partial(self._sent, number, time.monotonic()))

    def _sent(self, number: int, begun: float, answer: BlockPart | QuorumfsError) -> None:
        self.bytes_pending -= 1
        self._measure(number, begun, answer)
        verdict = judge(self.witness, answer, *self.pieces)
        if verdict is not Verdict.DOWN or self.verdicts[number] is not Verdict.GOOD:
            self.verdicts[number] = verdict  # bytes overrule a digest; silence does not unsay it
        if verdict is Verdict.GOOD and isinstance(answer, BlockPart) and self.part is None:
            self.part = answer
        self._note_change(True)

    def _measure(self, number: int, begun: float, answer: BlockPart | QuorumfsError) -> None:
        """Note how long the bytes took. Silence counts as its deadline; a refusal tells nothing of reads."""
        reads = self.servers[number].reads[self.size]
        if isinstance(answer, BlockPart):
            reads.note(time.monotonic() - begun)
        elif isinstance(answer, TransportError):
            reads.note(self._vote_seconds)

    def _note_change(self, matters: bool) -> None:
        if matters:
            self._changed = True
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if self._at_the_end is not None and self.complete:
            at_the_end, self._at_the_end = self._at_the_end, None
            at_the_end()

    def when_complete(self, call: Callable[[], None]) -> None:
        """Have `call` called when the last vote is in: now, if it is."""
        self._at_the_end = call
        self._note_change(False)

    def ask_another(self) -> bool:
        """Ask one more server for the bytes: first those that voted good, then those still to vote."""
        for wanted in (Verdict.GOOD, None):
            for number, verdict in self.verdicts.items():
                if verdict is wanted and number not in self.asked_for_bytes:
                    self.ask_for_bytes(number)
                    return True
        return False

    def count_filled(self, verdicts: Mapping[int, Verdict]) -> None:
        """Count the replicas that were missing by their verdicts after the repair."""
        for number, verdict in self.verdicts.items():
            if verdict is Verdict.MISSING:
                filled = verdicts.get(number) is Verdict.GOOD
                self.verdicts[number] = Verdict.GOOD if filled else Verdict.DOWN
                self.asked_for_bytes.discard(number)

    async def change(self, seconds: float) -> bool:
        """Wait for the next vote that may matter, at most so long. Returns whether one came."""
        if not self._changed:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, settle, self._waiter, None)
            try:
                await self._waiter
            finally:
                timer.cancel()
        changed, self._changed = self._changed, False
        return changed


class ReadPath:
    """Reads blocks by vote."""

    def __init__(
        self,
        quorum: Quorum,
        health: Health,
        metadata: Metadata,
        repairs: Repairs,
        vote_seconds: float,
    ) -> None:
        self._quorum = quorum
        self._health = health
        self._metadata = metadata
        self._repairs = repairs
        self._vote_seconds = vote_seconds
        self._turn = 0
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
        if ballot.part is None:
            raise Unavailable("the replicas that voted good stopped answering before they sent the bytes")
        if not ballot.unanimous:
            ballot.when_complete(partial(self._repair_losers, ballot))
        return ballot.part

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
        ballot.begin(self._choose(ballot))
        hedge = self._hedge_seconds(ballot)
        while (outcome := ballot.outcome) is not ReadOutcome.REFUSE:
            if outcome is ReadOutcome.ANSWER and ballot.part is not None:
                break
            if outcome is ReadOutcome.FILL and not await self._fill(ballot):
                break
            if not ballot.bytes_pending and ballot.part is None:
                if not ballot.ask_another():
                    break
            elif outcome is not ReadOutcome.FILL and not await ballot.change(hedge):
                hedge = self._vote_seconds
                ballot.ask_another()
        return ballot

    def _choose(self, ballot: Ballot) -> int | None:
        servers = [server for server in ballot.servers.values() if server.state == "up"]
        servers = servers or [server for server in ballot.servers.values() if server.up]
        self._turn += 1
        medians = {server.number: server.reads[ballot.size].median for server in servers}
        return choose_byte_server(medians, self._turn) if medians else None

    def _hedge_seconds(self, ballot: Ballot) -> float:
        return hedge_seconds(
            [server.reads[ballot.size].p95 for server in ballot.servers.values() if server.up]
        )

    async def _fill(self, ballot: Ballot) -> bool:
        """Fill the missing replicas and count those that were; False if the block is no longer the file's."""
        repaired = await self._repairs.repair(ballot.witness.block)
        if repaired.record != ballot.witness:
            return False
        ballot.count_filled(repaired.verdicts)
        return True

    def _repair_losers(self, ballot: Ballot) -> None:
        """Have repaired what the votes reveal."""
        if {Verdict.CORRUPT, Verdict.MISSING} & set(ballot.verdicts.values()):
            self._repairs.request(ballot.witness.block)

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
