"""Reading blocks: whole pieces, each verified against the witness, a bounded cache, blocks fetched ahead.

Knows blocks only; which of them a read needs is the file system's business. Safe in any thread.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from fusefs.extents import pieces_of
from fusefs.patience import Patience
from fusefs.ports import BlockPort
from wire.digest import BLOCK_BYTES, PIECE_BYTES, part_matches, piece_count
from wire.errors import DeadlineExceeded, DigestMismatch, Interrupted, QuorumfsError
from wire.messages import BlockPart, BlockRecord

log = logging.getLogger(__name__)

MOST_BLOCKS_AHEAD = 8
FETCHES = 6
"""So many blocks are fetched ahead at the same time."""
ATTEMPTS = 3
"""So often a part that does not match its witness is asked for before the read fails."""
NEAR_READS = 2
"""A read goes on with a run that ends within so many of its own lengths: the kernel reorders its requests.

Not within so many blocks: of small reads all over a file a few would end near the one before by chance, and
each of those would fetch whole blocks that nobody wants.
"""


def follows(read_from: int, read_to: int, offset: int, length: int) -> bool:
    """Tell whether a read of [offset, offset+length) goes on with the run [read_from, read_to)."""
    return read_from >= 0 and offset >= read_from and abs(offset - read_to) <= NEAR_READS * length


class _Fetched(NamedTuple):
    """Pieces of a block that came together, from piece `first` on."""

    data: memoryview
    first: int

    def part(self, start: int, end: int) -> memoryview:
        """Return bytes [start, end) of the block, as far as they are here."""
        base = self.first * PIECE_BYTES
        return self.data[max(start - base, 0) : end - base]


class BlockReader:
    """Verified bytes of blocks.

    Args:
        blocks: where parts of blocks come from.
        cache_bytes: the most bytes kept.
        patience: how a read waits for servers that are away.
        wait_seconds: a read waits for a fetch that is under way at most so long otherwise.
    """

    def __init__(
        self, blocks: BlockPort, cache_bytes: int, patience: Patience, wait_seconds: float = 30.0
    ) -> None:
        self._patience = patience
        self._blocks = blocks
        self._most_pieces = max(cache_bytes // PIECE_BYTES, 2 * BLOCK_BYTES // PIECE_BYTES)
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[bytes, int], _Fetched] = OrderedDict()
        self._fetching: dict[bytes, Future[memoryview]] = {}
        self._pool = ThreadPoolExecutor(FETCHES, "readahead")
        self.most_blocks_ahead = max(1, min(MOST_BLOCKS_AHEAD, cache_bytes // (4 * BLOCK_BYTES)))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, ino: int, record: BlockRecord, offset: int, length: int, whole: bool) -> list[memoryview]:
        """Return bytes [offset, offset+length) of a block, in order: what came together is one part.

        Args:
            ino: on whose behalf.
            record: the block and its witness.
            offset: where in the block.
            length: how many bytes, at least one.
            whole: fetch the whole block if anything must be fetched, for the reads to come.

        Raises:
            ReadRefused: the replicas could not vouch for it.
            DigestMismatch: what arrived did not match the witness, several times.
        """
        first, count = pieces_of(offset, length, PIECE_BYTES)
        runs = self._cached(record.block, first, count)
        if runs is None:
            if whole or record.block in self._fetching:
                data, start = self._whole(ino, record), 0
            else:
                data, start = self._fetch(ino, record, first, count), first * PIECE_BYTES
            return [data[offset - start : offset - start + length]]
        end = offset + length
        begins = [index * PIECE_BYTES for index, _ in runs]
        return [
            fetched.part(max(offset, low), min(end, high))
            for (_, fetched), low, high in zip(runs, begins, [*begins[1:], end], strict=True)
        ]

    def fetch_ahead(self, ino: int, records: Sequence[BlockRecord]) -> None:
        """Begin to fetch whole blocks that are likely to be read soon."""
        for record in records:
            with self._lock:
                known = record.block in self._fetching or (record.block, 0) in self._pieces
                if known or len(self._fetching) >= self.most_blocks_ahead:
                    continue
                future: Future[memoryview] = Future()
                self._fetching[record.block] = future
            self._pool.submit(self._fetch_for, future, ino, record)

    def offer(self, record: BlockRecord, part: BlockPart) -> None:
        """Keep a whole block that came unasked, if it matches the witness."""
        if part_matches(record.digest, record.length, 0, part.piece_digests, part.data):
            self._keep(record.block, 0, memoryview(part.data))

    def forget(self) -> None:
        """Forget all bytes, so that the next read of each block is a vote."""
        with self._lock:
            self._pieces.clear()

    def _cached(self, block: bytes, first: int, count: int) -> list[tuple[int, _Fetched]] | None:
        """Return from which piece on to use what was fetched, in order; None if a piece is not here."""
        with self._lock:
            runs: list[tuple[int, _Fetched]] = []
            for index in range(first, first + count):
                fetched = self._pieces.get((block, index))
                if fetched is None:
                    return None
                self._pieces.move_to_end((block, index))
                if not runs or runs[-1][1] is not fetched:
                    runs.append((index, fetched))
            return runs

    def _whole(self, ino: int, record: BlockRecord) -> memoryview:
        """Return a whole block; of several threads that want it, one fetches it."""
        while True:
            with self._lock:
                future = self._fetching.get(record.block)
                mine = future is None
                if future is None:
                    future = self._fetching[record.block] = Future()
            if mine:
                self._fetch_for(future, ino, record)
            try:
                return self._result_of(future)
            except TimeoutError:
                raise DeadlineExceeded(f"block {record.block.hex()} was not fetched in time") from None
            except Interrupted:
                if mine:
                    raise
                self._patience.look()  # it was the other thread that was interrupted, or this one too

    def _result_of(self, future: Future[memoryview]) -> memoryview:
        if not future.done():
            self._patience.duty.pass_on()
        if self._patience.waits:
            return self._patience.result_of(future)
        return future.result(self._patience.left(self._wait_seconds))

    def _fetch_for(self, future: Future[memoryview], ino: int, record: BlockRecord) -> None:
        try:
            data = self._fetch(ino, record, 0, piece_count(record.length))
        except BaseException as error:
            self._done(record)
            future.set_exception(error)
            if not isinstance(error, QuorumfsError):
                log.exception("fetching block %s failed", record.block.hex())
            return
        self._done(record)
        future.set_result(data)

    def _done(self, record: BlockRecord) -> None:
        with self._lock:
            self._fetching.pop(record.block, None)

    def _fetch(self, ino: int, record: BlockRecord, first: int, count: int) -> memoryview:
        """Ask for pieces and verify them; keep them in the cache."""
        for _ in range(ATTEMPTS):
            part = self._blocks.read_block(ino, record, first, count)
            expected = min(count * PIECE_BYTES, record.length - first * PIECE_BYTES)
            matches = part_matches(record.digest, record.length, first, part.piece_digests, part.data)
            if matches and len(part.data) == expected:
                return self._keep(record.block, first, memoryview(part.data))
            log.warning("block %s arrived broken, asking again", record.block.hex())
        raise DigestMismatch(f"block {record.block.hex()} arrived broken {ATTEMPTS} times")

    def _keep(self, block: bytes, first: int, data: memoryview) -> memoryview:
        with self._lock:
            fetched = _Fetched(data, first)
            for index in range(first, first + piece_count(len(data))):
                self._pieces[block, index] = fetched
                self._pieces.move_to_end((block, index))
            while len(self._pieces) > self._most_pieces:
                self._pieces.popitem(last=False)
        return data
