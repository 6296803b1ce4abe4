"""The votes on some pieces of one block: whom was asked what, and what came. It decides nothing. One loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from mediator.latency import size_class
from mediator.servers import Server
from mediator.vote import ReadOutcome, Verdict, judge, part_bytes, read_outcome
from wire.digest import PIECE_BYTES
from wire.errors import QuorumfsError, TransportError
from wire.lending import room_bytes
from wire.messages import BlockPart, BlockRecord
from wire.methods import DataMethods
from wire.quorum import Quorum
from wire.request import Request, request_of, settle


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
        self._wants_part = True
        self.unasked: set[int] = set()
        """Who has not been asked to vote: who was not chosen to vote at once."""
        self.asked_for_bytes: set[int] = set()
        self.bytes_pending = 0
        self._vote: Request[bytes] | None = None
        self._voting: dict[int, float] = {}
        """Who votes, and since when."""
        self._changed = False
        self._waiter: asyncio.Future[None] | None = None
        self._at_the_end: Callable[[], None] | None = None
        self._vote_seconds = vote_seconds

    @property
    def outcome(self) -> ReadOutcome:
        return read_outcome(self.quorum, self.verdicts.values())

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

    @property
    def asked_only_silent_ones(self) -> bool:
        """Whether somebody has voted good, but nobody of those who were asked for the bytes."""
        good = {number for number, verdict in self.verdicts.items() if verdict is Verdict.GOOD}
        return bool(good) and good.isdisjoint(self.asked_for_bytes)

    def begin(self, byte_server: int | None, voters: Collection[int]) -> None:
        """Ask one server for the bytes and others to vote; those that are down have voted so."""
        for number, server in self.servers.items():
            if not server.up:
                self.verdicts[number] = Verdict.DOWN
            elif number == byte_server:
                self.ask_for_bytes(number)
            else:
                self.unasked.add(number)
        for number in voters:
            self.ask(number)

    def ask(self, number: int) -> None:
        """Ask a server to vote, unless it was asked."""
        if self.calls_for(number):
            if self._vote is None:
                self._vote = request_of(DataMethods.digest, self.witness.block, *self.pieces)
            self.servers[number].begin(self._vote_seconds, self._vote, partial(self._answered, number))

    def calls_for(self, number: int) -> bool:
        """Tell whether a server is to be asked to vote, which then counts as done: `voted` tells its vote.

        Not if it was asked, nor if it is down by now.
        """
        if number not in self.unasked:
            return False
        self.unasked.remove(number)
        if not self.servers[number].up:
            self.verdicts[number] = Verdict.DOWN
            self._note_change(True)
            return False
        self._voting[number] = time.monotonic()
        return True

    def ask_rest(self) -> None:
        """Ask all that were not asked yet: the votes of those that were will not do, or are late."""
        for number in sorted(self.unasked):
            self.ask(number)

    def note_late(self, seconds: float) -> None:
        """Note that those that vote now have not done so for at least so long."""
        for number in self._voting:
            self.servers[number].votes[self.size].note(seconds)

    def _answered(self, number: int, answer: bytes | QuorumfsError) -> None:
        self.voted(number, answer, time.monotonic() - self._voting[number])

    def voted(self, number: int, answer: bytes | QuorumfsError, seconds: float) -> None:
        """Count a server's vote, or the error that came instead, which it took so long for."""
        del self._voting[number]
        late = isinstance(answer, TransportError)
        self.servers[number].votes[self.size].note(self._vote_seconds if late else seconds)
        if self.verdicts[number] is None:
            self.verdicts[number] = judge(self.witness, answer, *self.pieces)
        if self.verdicts[number] is not Verdict.GOOD:
            self.ask_rest()
        self._note_change(self.outcome is not ReadOutcome.WAIT)

    def ask_for_bytes(self, number: int) -> None:
        """Ask a server for the pieces; what it sends is its vote, whatever it voted before."""
        self.asked_for_bytes.add(number)
        self.unasked.discard(number)
        self.bytes_pending += 1
        request = request_of(DataMethods.get, self.witness.block, *self.pieces)
        request.room_bytes = room_bytes(part_bytes(self.witness.length, *self.pieces))
        self.servers[number].begin(self._vote_seconds, request, partial(self._sent, number, time.monotonic()))

    def _sent(self, number: int, begun: float, answer: BlockPart | QuorumfsError) -> None:
        self.bytes_pending -= 1
        self._measure(number, begun, answer)
        verdict = judge(self.witness, answer, *self.pieces)
        if verdict is not Verdict.DOWN or self.verdicts[number] is not Verdict.GOOD:
            self.verdicts[number] = verdict  # bytes overrule a digest; silence does not unsay it
        if verdict is not Verdict.GOOD:
            self.ask_rest()
        if verdict is Verdict.GOOD and isinstance(answer, BlockPart) and self._wants_part:
            self.part, self._wants_part = answer, False
        self._note_change(verdict is not Verdict.GOOD or self.outcome is not ReadOutcome.WAIT)

    def take_part(self) -> BlockPart | None:
        """Return the bytes if some came; no others are kept while the last votes are waited for."""
        part, self.part, self._wants_part = self.part, None, False
        return part

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

    def of_kind(self, kind: Verdict) -> list[int]:
        """Return the servers with this verdict."""
        return [number for number, verdict in self.verdicts.items() if verdict is kind]

    def count_filled(self, verdicts: Mapping[int, Verdict]) -> None:
        """Count the replicas that were missing by their verdicts after the repair."""
        for number in self.of_kind(Verdict.MISSING):
            if number in verdicts:
                filled = verdicts[number] is Verdict.GOOD
                self.verdicts[number] = Verdict.GOOD if filled else Verdict.DOWN
                self.asked_for_bytes.discard(number)
        self._note_change(self.outcome is not ReadOutcome.WAIT)

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
