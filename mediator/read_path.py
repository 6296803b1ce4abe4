"""Reading a block: one server sends the bytes, all others vote on the same pieces at the same time.

The outcome is vote.read_outcome's; here are only the calls. Stragglers finish after the answer, and
what all the votes reveal is repaired. It never answers bytes that do not match the witness. One loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from mediator.fanout import Background, outcome_of
from mediator.health import Health
from mediator.repair import Repairs
from mediator.servers import Metadata, Server
from mediator.vote import ReadOutcome, Verdict, describe_read, judge, read_outcome
from wire.digest import BLOCK_BYTES, DIGEST_BYTES, piece_count
from wire.errors import InvalidArgument, QuorumfsError, ReadRefused, Unavailable
from wire.messages import BLOCK_ID_BYTES, BlockPart, BlockRecord
from wire.methods import DataMethods
from wire.quorum import Quorum

HEDGE_SHORTEST_SECONDS = 0.05
HEDGE_LONGEST_SECONDS = 0.5
HEDGE_FACTOR = 4
"""A second server is asked for the bytes when the first takes so many times its usual time."""
LAST_VOTES_SECONDS = 0.05
"""A refusal waits so long for one more vote, so that it can say how all replicas stand."""
NEAR_FACTOR = 2
NEAR_SECONDS = 0.001
"""Servers at most this much slower than the fastest take turns in sending bytes."""


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


def choose_byte_server(latencies: dict[int, float], turn: int) -> int:
    """Return which server sends the bytes: those about as fast as the fastest take turns.

    Args:
        latencies: the usual time of an answer by server number, in seconds; at least one.
        turn: a number that grows with every choice.
    """
    limit = min(latencies.values()) * NEAR_FACTOR + NEAR_SECONDS
    near = sorted(number for number, latency in latencies.items() if latency <= limit)
    return near[turn % len(near)]


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
        background: Background,
    ) -> None:
        self.quorum = quorum
        self.servers = {server.number: server for server in servers}
        self.witness = witness
        self.pieces = (first_piece, pieces)
        self.verdicts: dict[int, Verdict | None] = dict.fromkeys(self.servers)
        self.part: BlockPart | None = None
        self.asked_for_bytes: set[int] = set()
        self.bytes_pending = 0
        self._changed = asyncio.Event()
        self._vote_seconds = vote_seconds
        self._background = background

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
        for number, server in self.servers.items():
            if not server.up:
                self.verdicts[number] = Verdict.DOWN
            elif number == byte_server:
                self.ask_for_bytes(number)
            else:
                self._background.start(self._vote(server), f"vote of server {number}")

    async def _vote(self, server: Server) -> None:
        asked = server.call(self._vote_seconds, DataMethods.digest, self.witness.block, *self.pieces)
        verdict = judge(self.witness, await outcome_of(asked), *self.pieces)
        if self.verdicts[server.number] is None:
            self.verdicts[server.number] = verdict
        self._changed.set()

    def ask_for_bytes(self, number: int) -> None:
        """Ask a server for the pieces; what it sends is its vote, whatever it voted before."""
        self.asked_for_bytes.add(number)
        self.bytes_pending += 1
        self._background.start(self._get(self.servers[number]), f"bytes of server {number}")

    async def _get(self, server: Server) -> None:
        asked = server.call(self._vote_seconds, DataMethods.get, self.witness.block, *self.pieces)
        answer = await outcome_of(asked)
        self.bytes_pending -= 1
        verdict = judge(self.witness, answer, *self.pieces)
        if verdict is not Verdict.DOWN or self.verdicts[server.number] is not Verdict.GOOD:
            self.verdicts[server.number] = verdict  # bytes overrule a digest; silence does not unsay it
        if verdict is Verdict.GOOD and isinstance(answer, BlockPart) and self.part is None:
            self.part = answer
        self._changed.set()

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

    async def change(self, seconds: float | None) -> bool:
        """Wait for the next vote, at most so long. Returns whether one came."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class ReadPath:
    """Reads blocks by vote."""

    def __init__(
        self,
        quorum: Quorum,
        health: Health,
        metadata: Metadata,
        repairs: Repairs,
        background: Background,
        vote_seconds: float,
    ) -> None:
        self._quorum = quorum
        self._health = health
        self._metadata = metadata
        self._repairs = repairs
        self._background = background
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
            self._background.start(self._settle(ballot), f"settling block {witness.block.hex()}")
        return ballot.part

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
            self._background,
        )
        ballot.begin(self._choose(ballot))
        hedge: float | None = self._hedge_seconds(ballot)
        while (outcome := ballot.outcome) is not ReadOutcome.REFUSE:
            if outcome is ReadOutcome.ANSWER and ballot.part is not None:
                break
            if outcome is ReadOutcome.FILL and not await self._fill(ballot):
                break
            if not ballot.bytes_pending and ballot.part is None:
                if not ballot.ask_another():
                    break
            elif outcome is not ReadOutcome.FILL and not await ballot.change(hedge):
                hedge = None
                ballot.ask_another()
        return ballot

    def _choose(self, ballot: Ballot) -> int | None:
        latencies = {number: s.latency_seconds for number, s in ballot.servers.items() if s.state == "up"}
        latencies = latencies or {number: s.latency_seconds for number, s in ballot.servers.items() if s.up}
        self._turn += 1
        return choose_byte_server(latencies, self._turn) if latencies else None

    def _hedge_seconds(self, ballot: Ballot) -> float:
        usual = min((s.latency_seconds for s in ballot.servers.values() if s.up), default=0.0)
        return min(HEDGE_LONGEST_SECONDS, max(HEDGE_SHORTEST_SECONDS, HEDGE_FACTOR * usual))

    async def _fill(self, ballot: Ballot) -> bool:
        """Fill the missing replicas and count those that were; False if the block is no longer the file's."""
        repaired = await self._repairs.repair(ballot.witness.block)
        if repaired.record != ballot.witness:
            return False
        ballot.count_filled(repaired.verdicts)
        return True

    async def _settle(self, ballot: Ballot) -> None:
        """Wait for the stragglers of an answered read, and have repaired what the votes reveal."""
        while not ballot.complete:
            await ballot.change(None)
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
