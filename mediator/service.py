"""The mediator's RPC surface, without logic: each method names the part that does the work.

What is refused is noted here, under the file it was refused for. One event loop.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from mediator.assembly import Mediator
from mediator.manifest import is_reserved
from wire.digest import Buffer
from wire.errors import InvalidArgument, NoSpace, QuorumError
from wire.messages import (
    LARGEST_MODE,
    Attributes,
    Birth,
    BlockPart,
    BlockRecord,
    Commit,
    Heartbeat,
    Identity,
    Opened,
    Ticket,
    Usage,
)
from wire.methods import BookkeepingMethods, CommonMethods, MediatorMethods, NamespaceMethods
from wire.server import Server

R = TypeVar("R")

GUARDED = ("open", "create")
"""Namespace methods that need a write quorum for some parameters; all others are passed on as they come."""


class Service:
    """What the mediator answers."""

    def __init__(self, mediator: Mediator, identity: Identity) -> None:
        self._mediator = mediator
        self._identity = identity

    def offer_on(self, server: Server) -> None:
        """Register all methods on the RPC surface."""
        server.register(CommonMethods, self)
        server.register(MediatorMethods, self)
        server.register(NamespaceMethods, self, only=GUARDED)
        server.forward(NamespaceMethods, self._mediator.metadata.forward, exclude=GUARDED)

    async def _noting(self, ino: int, operation: str, work: Coroutine[Any, Any, R]) -> R:
        """Do the work; remember why, if it is refused."""
        try:
            return await work
        except (QuorumError, NoSpace) as error:
            self._mediator.refusals.note(ino, operation, error)
            raise

    def identity(self) -> Identity:
        return self._identity

    async def status(self) -> dict[str, Any]:
        return await self._mediator.status()

    async def heartbeat(self, session: int) -> Heartbeat:
        renewal = await self._mediator.metadata.ask(BookkeepingMethods.renew_alone, session)
        health = self._mediator.health
        if not health.is_writable:
            await health.recheck()  # a mount refuses writes by this answer alone
        writable, reason = health.writable()
        full = await self._mediator.room.checked_refusal() if writable else ""
        epoch, *told = renewal
        return Heartbeat(epoch, writable, reason or full, bool(full), *told)

    async def put_block(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        _refuse_reserved(block)
        await self._noting(0, "put_block", self._mediator.write_path.put_block(block, digest, data, durable))

    async def read_block(
        self, ino: int, witness: BlockRecord, first_piece: int, piece_count: int
    ) -> BlockPart:
        return await self._noting(
            ino, "read", self._mediator.read_path.read_block(witness, first_piece, piece_count)
        )

    async def open_and_read(
        self, session: int, ino: int, start: int, names: list[bytes], closes: int
    ) -> Opened:
        walk = (start, names, closes)
        opened = await self._mediator.metadata.ask(NamespaceMethods.open, session, ino, False, *walk)
        part = await self._mediator.read_path.read_small(opened.map)
        return opened._replace(part=part)

    async def read_small_files(self, inodes: list[int]) -> list[Opened | None]:
        return await self._mediator.small_reads.read(inodes)

    async def sync_blocks(self, blocks: list[bytes]) -> None:
        await self._noting(0, "sync_blocks", self._mediator.write_path.sync_blocks(blocks))

    async def write_file(
        self,
        ticket: Ticket,
        ino: int,
        commit: Commit,
        payload: list[Buffer],
        birth: Birth | None = None,
        may_tell: bool = False,
    ) -> Attributes | None:
        for record in commit.blocks:
            _refuse_reserved(record.block)
        write = self._mediator.write_path.write_file(ticket, ino, commit, payload, birth, may_tell)
        return await self._noting(ino, "write", write)

    def open(
        self,
        session: int,
        ino: int,
        writing: bool,
        start: int = 0,
        names: list[bytes] | None = None,
        closes: int = 0,
    ) -> Awaitable[Opened]:
        params = [session, ino, writing, start, names, closes]
        send = partial(self._mediator.metadata.forward, "open", params)
        if not writing:
            return send()
        return self._when_writable(ino, "open for writing", self._mediator.write_path.check_writable, send)

    def create(
        self,
        ticket: Ticket,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes,
        open_it: bool,
    ) -> Awaitable[Attributes]:
        params = [ticket, parent, name, mode, uid, gid, rdev, target, open_it]
        send = partial(self._mediator.metadata.forward, "create", params)
        if not stat.S_ISREG(mode & LARGEST_MODE):  # the metadata server refuses what is no mode
            return send()
        check = partial(self._mediator.write_path.check_creatable, ticket)
        return self._when_writable(parent, "create", check, send)

    def _when_writable(
        self,
        ino: int,
        operation: str,
        check: Callable[[], Coroutine[Any, Any, None]],
        send: Callable[[], Awaitable[Any]],
    ) -> Awaitable[Any]:
        """Pass a call on, after a `check` if the write quorum seems lost; the raw result comes back."""
        if self._mediator.health.is_writable:
            return send()

        async def check_first() -> Any:
            await self._noting(ino, operation, check())
            return await send()

        return check_first()

    async def usage(self) -> Usage:
        return await self._mediator.explainer.usage()

    async def explain(self, ino: int) -> dict[str, Any]:
        return await self._mediator.explainer.explain(ino)

    async def refill(self, server: int) -> dict[str, Any]:
        return await self._mediator.refill(server)

    async def scrub(self, server: int, now: bool) -> list[dict[str, Any]]:
        return await self._mediator.scrub(server, now)

    async def ledger(self, limit: int) -> list[dict[str, Any]]:
        await self._mediator.ledger.flush()
        return await self._mediator.metadata.ask(BookkeepingMethods.ledger, limit)


def _refuse_reserved(block: bytes) -> None:
    """Raise InvalidArgument: a client must not put what looks like a copy of the metadata."""
    if is_reserved(block):
        raise InvalidArgument(f"block {block.hex()} is of no session")
