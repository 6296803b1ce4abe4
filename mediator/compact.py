"""Compacting: what files still use of a block that is mostly dead is rewritten as a new, smaller block.

Read by vote, put to a write quorum, durably, then exchanged in one transaction that checks that nothing has
changed. The old block is garbage then, as any other. `gathered` is pure; the rest is thin I/O on one loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from mediator.fanout import survive
from mediator.read_path import ReadPath
from mediator.servers import Metadata
from mediator.vote import Verdict
from mediator.write_path import WritePath
from wire.digest import Buffer, block_digest
from wire.errors import NoSpace, QuorumError, QuorumfsError, ReadRefused
from wire.messages import BlockPart, BlockRecord, Reference, SparseBlock
from wire.methods import BookkeepingMethods, NamespaceMethods

ROUND_SECONDS = 300.0
PAGE = 512
PAGE_PAUSE_SECONDS = 0.05
MIN_AGE_MS = 600_000
"""Files that changed within ten minutes are left alone."""
BYTES_PER_SECOND = 8 * 1024 * 1024

log = logging.getLogger("mediator.compact")


def gathered(data: Buffer, references: Sequence[Reference]) -> bytes:
    """Return the bytes of a block that are referred to, one after the other."""
    return b"".join(data[r.block_offset : r.block_offset + r.length] for r in references)


class Compactor:
    """Compacts round by round."""

    def __init__(self, metadata: Metadata, read_path: ReadPath, write_path: WritePath) -> None:
        self._metadata = metadata
        self._read_path = read_path
        self._write_path = write_path
        self._session = 0
        self._counter = 0
        self.blocks = 0
        self.bytes_freed = 0
        self.given_up = 0

    def status(self) -> dict[str, Any]:
        """Return how many blocks were compacted, the bytes that freed, and how many were given up.

        These had changed meanwhile, or are damaged.
        """
        return {"blocks": self.blocks, "bytes_freed": self.bytes_freed, "given_up": self.given_up}

    async def run_once(self, min_age_ms: int = MIN_AGE_MS) -> None:
        """Go through all blocks once.

        Raises:
            QuorumfsError: the metadata server does not answer, or there is no write quorum, or no room.
        """
        after: bytes = b""
        try:
            while True:
                page = await self._metadata.ask(BookkeepingMethods.sparse_blocks, after, PAGE, min_age_ms)
                for sparse in page.blocks:
                    await self._compact(sparse)
                if not page.after:
                    return
                after = page.after
                await asyncio.sleep(PAGE_PAUSE_SECONDS)
        finally:
            await self._end_session()

    async def _compact(self, sparse: SparseBlock) -> None:
        if (part := await self._read(sparse.record)) is None:
            self.given_up += 1
            return
        data = gathered(part.data, sparse.references)
        record = BlockRecord(await self._new_block(), len(data), block_digest(data))
        await self._write_path.put_block(record.block, record.digest, data, True)
        exchange = (self._session, sparse.record.block, sparse.references, record)
        try:
            done = await self._metadata.ask(BookkeepingMethods.exchange_block, *exchange)
        except BaseException:
            self._write_path.note_in_doubt(record)
            raise
        if done:
            self._write_path.note_committed(record)
            self.blocks += 1
            self.bytes_freed += sparse.record.length - record.length
        else:
            self.given_up += 1
            await self._metadata.ask(NamespaceMethods.abandon_blocks, self._session, [record])
        await asyncio.sleep(sparse.record.length / BYTES_PER_SECOND)

    async def _read(self, record: BlockRecord) -> BlockPart | None:
        """Return a block; None if it is damaged or superseded: that must not keep all others from their turn.

        Raises:
            ReadRefused: for servers that are down; others would be refused too.
        """
        try:
            return await self._read_path.read_block(record, 0, 0)
        except ReadRefused as error:
            if Verdict.DOWN in error.detail["votes"].values():
                raise
            return None

    async def _new_block(self) -> bytes:
        """Return a block id of a session of our own: what a crash leaves belongs to a dead session."""
        if self._session:
            await self._metadata.ask(BookkeepingMethods.renew, self._session)
        else:
            self._session = (await self._metadata.ask(NamespaceMethods.open_session, "compaction")).session
            self._counter = 0
        self._counter += 1
        return self._session.to_bytes(8, "big") + self._counter.to_bytes(8, "big")

    async def _end_session(self) -> None:
        session, self._session = self._session, 0
        if session:
            await self._metadata.ask(NamespaceMethods.close_session, session)

    async def run_forever(self) -> None:
        """Compact from time to time until cancelled."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            await survive(self._try_once(), "compaction")

    async def _try_once(self) -> None:
        try:
            await self.run_once()
        except (QuorumError, NoSpace) as error:
            log.info("nothing is compacted now: %s", error.message)
        except QuorumfsError as error:
            log.debug("nothing is compacted now: %s", error.message)
