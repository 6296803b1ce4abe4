"""The RPC surface of a data server: passes calls on to the store. No logic of its own.

Runs on the event loop. Small calls, which the page cache answers in microseconds, are carried out at once;
those that move much or wait long for the disk go to a small pool of threads. A long put is carried out at
once too while the disk is quick (docs/decisions/0003-segments-not-files.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from dataserver.block_rings import BlockRings
from dataserver.contract import BlockStore
from dataserver.marks import Milestones, ScrubMark
from dataserver.quarantine import Quarantine
from wire.block_ring import MOST_BYTES
from wire.digest import BLOCK_BYTES, PIECE_BYTES, Buffer
from wire.errors import BadRequest, BlockDamaged, BlockMissing, InternalError
from wire.lending import is_borrowed
from wire.messages import (
    SMALL_BLOCK_BYTES,
    SMALL_FILES_AT_ONCE,
    BlockPart,
    BlockRecord,
    BlockRing,
    Identity,
    Milestone,
    SmallReplicas,
    VotedPart,
)
from wire.shared_sync import SharedSync

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

INLINE_BYTES = 64 * 1024
"""Calls that move more bytes go to a thread, but for puts on a quick disk."""
THREADS = 4
MAINTAIN_SECONDS = 2.0
LOOK_SECONDS = 0.01
"""While blocks are given without calls, the rings are looked into so often."""


class DataService:
    """Offers CommonMethods and DataMethods over a block store."""

    def __init__(
        self,
        store: BlockStore,
        identity: Identity,
        scrub: ScrubMark,
        milestones: Milestones,
        quarantine: Quarantine,
        rings: BlockRings,
    ) -> None:
        self._quarantine = quarantine
        self._store = store
        self._rings = rings
        self._bringing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._scrub = scrub
        self._milestones = milestones
        self._noting = asyncio.Lock()
        """Held while one of the marks is kept, which are one thread's at a time."""
        self._identity = identity
        self._started = time.monotonic()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self._writing = 0
        self._maintaining = False
        self._preparing: asyncio.Future[None] | None = None
        self._sync = SharedSync(
            self._threads, self._store.sync, self._has_little_to_sync, self._prepare_space
        )

    async def _in_thread(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(call, *args, **kwargs))

    async def _write_in_thread(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """While one of these holds the end of the segment, small puts go to a thread too."""
        self._writing += 1
        try:
            return await self._in_thread(call, *args, **kwargs)
        finally:
            self._writing -= 1

    def identity(self) -> Identity:
        return self._identity

    def status(self) -> dict[str, Any]:
        return {
            "kind": self._identity.kind,
            "number": self._identity.number,
            "epoch": self._identity.epoch,
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            **self._store.status(),
            "scrub": self._scrub.value,
        }

    def bring_in(self) -> Awaitable[None] | None:
        """Take in what mediators have given without a call. To be done before each call is carried out."""
        if self._bringing is not None and self._bringing.done():
            self._bringing = None  # also before its callback: who awaits what is done goes on at once
        if self._bringing is None and self._rings.has_waiting():
            if not self._writing:
                self._rings.take_in()
                self._look_later()
                return None
            loop = asyncio.get_running_loop()
            self._bringing = loop.run_in_executor(self._threads, self._rings.take_in)
            self._bringing.add_done_callback(self._brought)
        return None if self._bringing is None else asyncio.shield(self._bringing)

    def _brought(self, done: asyncio.Future[None]) -> None:
        self._bringing = None
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None and time.monotonic() < self._rings.active_until:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self.bring_in()
        self._look_later()

    def open_ring(self) -> BlockRing:
        ring = self._rings.open()
        self._look_later()
        return ring

    def put(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> Awaitable[None] | None:
        if len(data) <= MOST_BYTES and not durable and self._rings.expect_more():
            self._look_later()
        may_take_long = self._writing if len(data) <= INLINE_BYTES else not self._store.puts_quickly
        if may_take_long:
            return self._put_in_thread(block, digest, data, durable)
        self._store.put(block, digest, data)
        return self._sync() if durable else None

    async def _put_in_thread(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        await self._write_in_thread(self._store.put, block, digest, data)
        if durable:
            await asyncio.shield(self._sync())

    def get(
        self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None
    ) -> BlockPart | Awaitable[BlockPart]:
        lent = room if is_borrowed(room) else None
        if self._is_short(block, piece_count):
            return self._store.get(block, first_piece, piece_count, lent)
        return self._in_thread(self._store.get, block, first_piece, piece_count, lent)

    def digest(self, block: bytes, first_piece: int, piece_count: int) -> bytes | Awaitable[bytes]:
        if self._is_short(block, piece_count):
            return self._store.digest(block, first_piece, piece_count)
        return self._in_thread(self._store.digest, block, first_piece, piece_count)

    def _is_short(self, block: bytes, piece_count: int) -> bool:
        """Tell whether reading so many pieces of a block is done before a thread would have begun."""
        wanted = piece_count * PIECE_BYTES or BLOCK_BYTES
        return wanted <= INLINE_BYTES or (self._store.length(block) or 0) <= INLINE_BYTES

    async def digests(self, parts: list[VotedPart]) -> list[bytes | None]:
        return await self._in_thread(self._digests, parts)

    def _digests(self, parts: list[VotedPart]) -> list[bytes | None]:
        blocks = self._store.in_disk_order(list({part.block for part in parts}))
        place = {block: index for index, block in enumerate(blocks)}
        order = sorted(set(parts), key=lambda part: (place[part.block], part.first_piece))
        found = {part: self._vote(part) for part in order}
        return [found[part] for part in parts]

    def _vote(self, part: VotedPart) -> bytes | None:
        try:
            return self._store.digest(*part)
        except BlockMissing:
            return None
        except BlockDamaged:
            return b""

    async def read_small(self, sent: list[bytes], voted: list[bytes]) -> SmallReplicas:
        if len(sent) + len(voted) > SMALL_FILES_AT_ONCE:
            raise BadRequest(f"{len(sent) + len(voted)} blocks: at most {SMALL_FILES_AT_ONCE} at once")
        return await self._in_thread(self._read_small, sent, voted)

    def _read_small(self, sent: list[bytes], voted: list[bytes]) -> SmallReplicas:
        data: dict[bytes, bytes | None] = {}
        digests: dict[bytes, bytes | None] = {}
        to_send, to_vote = set(sent), set(voted)
        for block in self._store.in_disk_order(list(dict.fromkeys([*sent, *voted]))):
            is_small = (self._store.length(block) or 0) <= SMALL_BLOCK_BYTES
            if block in to_send:
                data[block] = self._bytes_of(block) if is_small else b""
            if block in to_vote:
                digests[block] = self._vote(VotedPart(block, 0, 0)) if is_small else b""
        return SmallReplicas([data[block] for block in sent], [digests[block] for block in voted])

    def _bytes_of(self, block: bytes) -> bytes | None:
        try:
            return bytes(self._store.get(block, 0, 0).data)
        except BlockMissing:
            return None
        except BlockDamaged:
            return b""

    async def keep_scrub(self, state: dict[str, Any]) -> None:
        async with self._noting:  # each of several mediators scrubs
            await self._in_thread(self._scrub.keep, state)

    async def keep_milestone(self, milestone: Milestone) -> None:
        async with self._noting:
            await self._in_thread(self._milestones.keep, milestone)

    def milestones(self) -> list[Milestone]:
        return self._milestones.all()

    def _has_little_to_sync(self) -> bool:
        """Tell whether a sync has little to write, and no thread holds it up."""
        busy = self._writing or self._maintaining or self._is_preparing
        return not busy and self._store.has_little_unsynced

    @property
    def _is_preparing(self) -> bool:
        return self._preparing is not None and not self._preparing.done()

    def _prepare_space(self) -> None:
        """After a sync: let a thread write zeros ahead, if that is worth it and none does."""
        if self._store.wants_ahead and not self._is_preparing:
            with suppress(RuntimeError):  # the threads end, and the store with them
                loop = asyncio.get_running_loop()
                self._preparing = loop.run_in_executor(self._threads, self._store.write_ahead)

    async def repair(self, block: bytes, digest: bytes, data: Buffer, note: str) -> str:
        return await self._write_in_thread(self._store.repair, block, digest, data, note)

    async def quarantine_list(self, after: str, limit: int) -> list[dict[str, Any]]:
        return await self._in_thread(self._quarantine.page, after, limit)

    async def quarantine_read(self, name: str) -> bytes:
        return await self._in_thread(self._quarantine.read, name)

    async def quarantine_remove(self, names: list[str]) -> int:
        return await self._in_thread(self._quarantine.remove, names)

    async def delete(self, blocks: list[bytes]) -> int:
        return await self._in_thread(self._store.delete, blocks)

    async def sync(self, blocks: list[bytes]) -> list[bytes]:
        lacking = {block for block in blocks if self._store.length(block) is None}
        await asyncio.shield(self._sync())
        # What came meanwhile may not be in this sync; what went may have been cut off again.
        return [block for block in blocks if block in lacking or self._store.length(block) is None]

    async def inventory(self, after: bytes, limit: int) -> list[BlockRecord]:
        return await self._in_thread(self._store.inventory, after, limit)

    def count(self) -> int:
        return self._store.count()

    async def maintain_for_ever(self) -> None:
        """Do the store's background work every MAINTAIN_SECONDS; a failure is logged once until it passes."""
        failed = False
        while True:
            await asyncio.sleep(MAINTAIN_SECONDS)
            self._maintaining = True
            try:
                while (wait := self.bring_in()) is not None:
                    await wait
                self._rings.end_idle()
                await self._in_thread(self._store.maintain)
                failed = False
            except OSError as error:
                if not failed:
                    _log.error("the disk failed in the background: %s; it is tried again", error)
                failed = True
            except InternalError as error:
                if not failed:
                    _log.error("no background work is done: %s", error)
                failed = True
            except Exception:
                if not failed:
                    _log.exception("background work failed; it is tried again")
                failed = True
            finally:
                self._maintaining = False

    def close(self) -> None:
        """Wait for the threads, and take in what was given. The store is its owner's to close."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown()
        self._rings.close()
