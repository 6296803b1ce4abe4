"""Writing: blocks to all data servers at once, done when Qw hold them; then the commit that shows them.

Refused before anything is sent while fewer than Qw servers are up. Nothing is visible before the commit;
a failed write leaves only blocks that no file refers to. One event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from mediator.block_rings import BlockRings
from mediator.fanout import Background, outcome_of, until_decided
from mediator.health import Health
from mediator.lag import LagKeeper
from mediator.placement import holders
from mediator.repair import IN_FLIGHT, Repaired, Repairs
from mediator.room import Room, lacks_room
from mediator.servers import Metadata, Server
from mediator.vote import Progress, servers_in_words, write_progress
from wire.digest import BLOCK_BYTES, Buffer, block_digest
from wire.errors import (
    DigestMismatch,
    InvalidArgument,
    NoSpace,
    QuorumError,
    QuorumfsError,
    Unavailable,
    WriteFailed,
    WriteRefused,
)
from wire.messages import BLOCK_ID_BYTES, Attributes, Birth, BlockRecord, Commit, Ticket
from wire.methods import BookkeepingMethods, DataMethods
from wire.quorum import Quorum
from wire.request import Request, Then, request_of

MOST_BEHIND = 64
"""A server with so many puts unanswered gets no more that the quorum can do without; it is repaired later."""


def lacked_by_too_many(quorum: Quorum, answers: Mapping[int, Any]) -> list[bytes]:
    """Return the blocks that fewer than Qw of the servers that synced hold, of those that some lack.

    Args:
        quorum: N and Qw.
        answers: by server number: the blocks that it lacks, or an error.
    """
    lists = [answer for answer in answers.values() if isinstance(answer, list)]
    lacking = Counter(block for answer in lists for block in set(answer))
    return [block for block, count in lacking.items() if len(lists) - count < quorum.write]


def are_durable(quorum: Quorum, answers: Mapping[int, Any]) -> bool:
    """Tell whether each block is durable on Qw servers; they need not be the same for all blocks.

    Which ones these are changes while a file is written, as servers are restarted or slow in turn.
    """
    synced = sum(isinstance(answer, list) for answer in answers.values())
    return synced >= quorum.write and not lacked_by_too_many(quorum, answers)


class _Put:
    """One block on its way to several servers, until Qw of them hold it or too few can."""

    __slots__ = ("_block", "_given", "_path", "_request", "_stored", "_targets", "answers", "decided")

    def __init__(
        self,
        path: WritePath,
        block: bytes,
        request: Request[None],
        targets: Sequence[Server],
        given: Collection[int],
    ) -> None:
        self._path, self._block, self._request, self._targets = path, block, request, targets
        self._given = given
        """The numbers of the servers that have it by now."""
        self._stored = 0
        self.answers: dict[int, QuorumfsError | None] = {}
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        self._look()
        for server in self._targets:
            if server.number in self._given:
                self._note(server, None)
            else:
                self._path.ask(self._request, server, partial(self._note, server))

    def _note(self, server: Server, stored: QuorumfsError | None) -> None:
        self._path.note_put(server, self._block, stored)
        self.answers[server.number] = stored
        if stored is None:
            self._stored += 1
        self._look()

    def _look(self) -> None:
        pending = len(self._targets) - len(self.answers)
        if (
            not self.decided.done()
            and write_progress(self._path.quorum, self._stored, pending) is not Progress.PENDING
        ):
            self.decided.set_result(None)


class WritePath:
    """Puts blocks by quorum. What a server did not take is told with the commit, and healed after it."""

    def __init__(
        self,
        quorum: Quorum,
        health: Health,
        metadata: Metadata,
        repairs: Repairs,
        room: Room,
        lag: LagKeeper,
        background: Background,
        vote_seconds: float,
    ) -> None:
        self.puts = 0
        """How many blocks users wanted to be put."""
        self._room = room
        self.quorum = quorum
        self._health = health
        self._metadata = metadata
        self._background = background
        self._vote_seconds = vote_seconds
        self._repairs = repairs
        self._lag = lag
        self._numbers = [server.number for server in health.servers]
        self._fills = asyncio.Semaphore(IN_FLIGHT)
        self._open_puts = {server.number: 0 for server in health.servers}
        self._rings = BlockRings(health.servers, vote_seconds)

    def close(self) -> None:
        """Leave what servers take blocks from. Nothing is to be put any more."""
        self._rings.close()

    async def check_writable(self) -> None:
        """Raise WriteRefused while fewer than Qw data servers are up; the message says what to do."""
        if self._health.is_writable:
            return
        await self._health.recheck()
        possible, reason = self._health.writable()
        if not possible:
            down = sorted(server.number for server in self._health.servers if not server.up)
            raise WriteRefused(reason, {"down": down, "needed": self.quorum.write})

    async def check_creatable(self, ticket: Ticket) -> None:
        """As check_writable, for a call that a client may have sent before and that was carried out then."""
        try:
            await self.check_writable()
        except WriteRefused:
            if not await self.was_carried_out(ticket):
                raise

    async def was_carried_out(self, ticket: Ticket) -> bool:
        """Tell whether a call is one sent again after its answer was lost: it must get that very answer.

        Raises:
            QuorumfsError: the metadata server does not say. Then the call must not be called refused either.
        """
        return await self._metadata.ask(BookkeepingMethods.answered, ticket)

    async def put_block(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        """Put a block to all servers that are up; return when Qw hold it.

        Raises:
            InvalidArgument, DigestMismatch: the request itself is wrong.
            WriteRefused, WriteFailed: there is no quorum; `detail` says who answered what.
            NoSpace: there would be one if fewer servers were full.
        """
        self.puts += 1
        if not self._health.is_writable:
            await self.check_writable()
        if not self._room.enough:
            await self._room.require()
        if len(block) != BLOCK_ID_BYTES or len(data) > BLOCK_BYTES:
            raise InvalidArgument(f"a block id has {BLOCK_ID_BYTES} bytes and a block at most {BLOCK_BYTES}")
        if block_digest(data) != digest:
            raise DigestMismatch(f"block {block.hex()}: its bytes do not match its digest")
        request = request_of(DataMethods.put, block, digest, data, durable)
        record = BlockRecord(block, len(data), digest)
        answers = await self._put(record, request, None if durable else data)
        if self._is_quorum(answers):
            return
        if self._failed_for_room(answers):
            await self._room.require()
            answers = await self._put(record, request)
            if self._failed_for_room(answers):
                raise NoSpace(self._room.reason())
        self._require(f"block {block.hex()}", answers, lambda stored: stored is None)

    async def _put(
        self, record: BlockRecord, request: Request[None], data: Buffer | None = None
    ) -> dict[int, Any]:
        """Put a block to all targets; return the answers so far when Qw hold it, or too few can.

        Its `data` is given without a call to those that take it so. If too few can, and a server is up that
        was left out or came up meanwhile, all that are up are asked.
        """
        targets = self._targets(record.block)
        given = () if data is None else self._rings.give(targets, record, data)
        answers = await self._put_to(targets, record, request, given)
        if not self._is_quorum(answers) and set(everybody := self._holders_up(record.block)) - set(targets):
            answers |= await self._put_to(everybody, record, request)
        return answers

    async def _put_to(
        self,
        targets: Sequence[Server],
        record: BlockRecord,
        request: Request[None],
        given: Collection[int] = (),
    ) -> dict[int, Any]:
        chosen = [server.number for server in targets]
        self._lag.begin(record, holders(record.block, self._numbers), chosen)
        for number in chosen:
            self._open_puts[number] += 1
        put = _Put(self, record.block, request, targets, given)
        put.begin()
        await put.decided
        return dict(put.answers)

    def _is_quorum(self, answers: Mapping[int, Any]) -> bool:
        stored = list(answers.values()).count(None)
        return write_progress(self.quorum, stored, pending=0) is Progress.REACHED

    def _failed_for_room(self, answers: Mapping[int, Any]) -> bool:
        if self._is_quorum(answers):
            return False
        down = {server.number: Unavailable(server.error) for server in self._health.servers if not server.up}
        return lacks_room(self.quorum, {**down, **answers})

    def _targets(self, block: bytes) -> list[Server]:
        """Return the holders that are up, without those far behind if Qw others remain."""
        up = self._holders_up(block)
        prompt = [server for server in up if self._open_puts[server.number] < MOST_BEHIND and not server.full]
        return up if len(prompt) < self.quorum.write else prompt

    def _holders_up(self, block: bytes) -> list[Server]:
        numbers = holders(block, self._numbers)
        return [server for server in self._health.up if server.number in numbers]

    def note_put(self, server: Server, block: bytes, stored: QuorumfsError | None) -> None:
        """Note what came of a put on one server."""
        self._open_puts[server.number] -= 1
        if stored is None:
            self._lag.acknowledged(block, server.number)
            return
        if isinstance(stored, NoSpace):
            self._room.note_full(server)
        self._lag.failed(block, server.number)

    def ask(self, request: Request[Any], server: Server, then: Then) -> None:
        """Call one server, once more if the bytes arrived broken or only the connection was stale."""

        def answered(answer: Any) -> None:
            if isinstance(answer, DigestMismatch | Unavailable):
                again = self._ask_again(request, server, answer, then)
                self._background.start(again, f"second call to server {server.number}")
            else:
                then(answer)

        server.begin(self._vote_seconds, request, answered)

    async def _ask_again(
        self, request: Request[Any], server: Server, error: QuorumfsError, then: Then
    ) -> None:
        if not server.up:
            await self._health.recheck()
        if server.up:
            server.begin(self._vote_seconds, request, then)
        else:
            then(error)

    async def sync_blocks(self, blocks: list[bytes]) -> None:
        """Make blocks durable on at least Qw data servers. Raises WriteFailed.

        A server that has just come back may lack some of them: they are filled first, then it counts.
        """
        if not blocks:
            return
        if len(self._health.up) < self.quorum.write:
            await self._health.recheck()
        answers = await self._sync(blocks)
        if lacking := lacked_by_too_many(self.quorum, answers):
            await self._fill(lacking, answers)
            answers = await self._sync(blocks)
        if not are_durable(self.quorum, answers):
            self._require(f"{len(blocks)} blocks made durable", answers, lambda lacking: lacking == [])

    async def _fill(self, blocks: list[bytes], answers: Mapping[int, Any]) -> None:
        """Give blocks to servers that lack them: by a vote, or as they were put if they wait for a commit."""
        repaired = await asyncio.gather(*(outcome_of(self._repairs.repair(block)) for block in blocks))
        unknown = [
            block
            for block, became in zip(blocks, repaired, strict=True)
            if isinstance(became, Repaired) and became.record is None
        ]
        if not unknown:
            return
        dead = set(await self._metadata.ask(BookkeepingMethods.collectable, unknown))
        records = [self._lag.record_of(block) for block in unknown if block not in dead]
        for server in self._health.up:
            answer = answers.get(server.number)
            lacking = set(answer) if isinstance(answer, list) else set()
            wanted = [record for record in records if record is not None and record.block in lacking]
            await asyncio.gather(*(self._fill_one(server, record) for record in wanted))

    async def _fill_one(self, server: Server, record: BlockRecord) -> None:
        async with self._fills:
            await self._repairs.fill(server, record)

    async def _sync(self, blocks: list[bytes]) -> dict[int, Any]:
        """Have all servers that are up sync, until Qw hold each block or every one has answered."""

        def progress(answers: Mapping[int, Any], pending: int) -> Progress:
            if are_durable(self.quorum, answers):
                return Progress.REACHED
            return Progress.PENDING if pending else Progress.IMPOSSIBLE

        sync = partial(self.ask, request_of(DataMethods.sync, blocks))
        return await until_decided(self._health.up, sync, progress)

    async def write_file(
        self,
        ticket: Ticket,
        ino: int,
        commit: Commit,
        payload: list[Buffer],
        birth: Birth | None = None,
        may_tell: bool = False,
    ) -> Attributes | None:
        """Put the payload's blocks, then commit. Raises what put_block and commit raise.

        With `may_tell` the client commits, and None is returned, if all that should have the blocks do.
        """
        if len(payload) > len(commit.blocks):
            raise InvalidArgument(f"{len(payload)} blocks come with {len(commit.blocks)} records")
        try:
            if not payload:  # else it is checked with each block
                await self.check_writable()
            records = commit.blocks[len(commit.blocks) - len(payload) :]
            await self._put_payload(records, payload, commit.durable)
        except (QuorumError, NoSpace):
            if not await self.was_carried_out(ticket):
                raise
        if may_tell and self._lag.have_all(commit.blocks):
            return None
        lag = self._lag.of_commit(commit.blocks)
        params = [ticket, ino, commit, lag or None, birth] if lag or birth else [ticket, ino, commit]
        try:
            attributes = await self._metadata.forward("commit", params)
        except BaseException:
            self._lag.in_doubt(commit.blocks)
            raise
        self._lag.committed(commit.blocks, lag)
        return attributes  # type: ignore[no-any-return]  # as they came: they are only passed on

    def note_committed(self, record: BlockRecord) -> None:
        """A block that was put became a file's without a commit: who lacks it is told now."""
        self._lag.committed([record], [])

    def note_in_doubt(self, record: BlockRecord) -> None:
        """The same of a block of which nobody knows whether it did."""
        self._lag.in_doubt([record])

    async def _put_payload(self, records: list[BlockRecord], payload: list[Buffer], durable: bool) -> None:
        for record, data in zip(records, payload, strict=True):
            if record.length != len(data):
                raise InvalidArgument(
                    f"block {record.block.hex()} has {len(data)} bytes, not {record.length}"
                )
        puts = [
            self.put_block(record.block, record.digest, data, durable)
            for record, data in zip(records, payload, strict=True)
        ]
        if len(puts) == 1:
            await puts[0]
            return
        for result in await asyncio.gather(*puts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _require(
        self,
        what: str,
        answers: Mapping[int, Any],
        accepted: Callable[[Any], bool],
    ) -> None:
        """Raise WriteFailed, saying who answered what, unless Qw servers did as asked."""
        stored = [number for number, answer in answers.items() if accepted(answer)]
        if write_progress(self.quorum, len(stored), pending=0) is Progress.REACHED:
            return
        said = {
            str(server.number): self._in_words(server, answers, stored) for server in self._health.servers
        }
        failed = [server.number for server in self._health.servers if server.number not in stored]
        raise WriteFailed(
            f"{what}: {len(stored)} of {self.quorum.servers} data servers took it, "
            f"Qw={self.quorum.write} are needed; not {servers_in_words(failed)}: "
            + "; ".join(sorted({said[str(number)] for number in failed})),
            {"answers": said, "stored": len(stored), "needed": self.quorum.write},
        )

    @staticmethod
    def _in_words(server: Server, answers: Mapping[int, Any], stored: list[int]) -> str:
        if server.number in stored:
            return "stored"
        answer = answers.get(server.number)
        if answer is None:
            return "no answer yet" if server.up else f"down: {server.error}"
        return answer.message if isinstance(answer, QuorumfsError) else "lacks some of the blocks"
