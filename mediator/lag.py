"""Who has not taken which block: noted with each put, told to the metadata server with the commit.

Nothing is told of a block that all servers have taken. A put that is still open at the commit is told of
only if it fails later; should this mediator be killed before, the next one asks the data servers for the
newest blocks (docs/decisions/0009-who-lacks-which-block.md). It moves no blocks. One event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from mediator.fanout import Background
from mediator.servers import Metadata
from wire.errors import QuorumfsError
from wire.messages import BlockRecord, Lag
from wire.methods import BookkeepingMethods

MOST_PUTS = 32 * 1024
"""So many of the newest puts are known. Of a block that is not, no server is taken to have it.

So many blocks may wait for it to be told who lacks them.
"""
RETRY_SECONDS = 1.0

log = logging.getLogger("mediator.lag")


class Put:
    """One block on its way: bit k of `open` and `lacking` stands for data server k.

    It is `doubtful` while nobody knows whether a commit of it that failed was carried out.
    """

    __slots__ = ("committed", "doubtful", "lacking", "open", "record")

    def __init__(self, record: BlockRecord, targets: int, holders: int) -> None:
        self.record = record
        self.open = targets
        self.lacking = holders & ~targets
        self.committed = self.doubtful = False


def mask_of(numbers: Iterable[int]) -> int:
    """Return the bits of these servers."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def numbers_in(mask: int) -> list[int]:
    """Return the servers whose bits are set."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


class LagKeeper:
    """The puts of the last minutes, and what is to be told of them."""

    def __init__(
        self,
        servers: Collection[int],
        metadata: Metadata,
        background: Background,
        lags: Callable[[int], None],
    ) -> None:
        """Args:
        servers: the numbers of all data servers.
        lags: is called with the number of a server for which lag was remembered.
        """
        self._all = mask_of(servers)
        self._metadata = metadata
        self._background = background
        self._lags = lags
        self._puts: OrderedDict[bytes, Put] = OrderedDict()
        self._untold: OrderedDict[bytes, int] = OrderedDict()
        self._telling = False

    def record_of(self, block: bytes) -> BlockRecord | None:
        """Return what a block must be that was put; None if that was too long ago, or by another mediator."""
        put = self._puts.get(block)
        return None if put is None else put.record

    def begin(self, record: BlockRecord, holders: Iterable[int], targets: Iterable[int]) -> None:
        """A block is put to `targets`, of all that should hold it.

        One that was put before, for a call that is sent again, stays what it is: perhaps committed, with puts
        that are open still and must be told of if they fail.
        """
        put = self._puts.get(record.block)
        if put is None:
            self._puts[record.block] = Put(record, mask_of(targets), mask_of(holders))
            if len(self._puts) > MOST_PUTS:
                self._puts.popitem(last=False)
        else:
            put.open |= mask_of(targets)

    def acknowledged(self, block: bytes, number: int) -> None:
        """A server has the block."""
        put = self._puts.get(block)
        if put is not None:
            put.open &= ~(1 << number)
            put.lacking &= ~(1 << number)

    def failed(self, block: bytes, number: int) -> None:
        """A server did not take the block, or not in time."""
        put = self._puts.get(block)
        if put is None:
            return
        put.open &= ~(1 << number)
        put.lacking |= 1 << number
        if put.committed or put.doubtful:
            self._tell_later(block, 1 << number)

    def have_all(self, records: Iterable[BlockRecord]) -> bool:
        """Tell whether nothing will ever have to be told of these blocks: all servers have taken them."""
        puts = [self._puts.get(record.block) for record in records]
        return all(put is not None and not put.open and not put.lacking for put in puts)

    def of_commit(self, records: Iterable[BlockRecord]) -> list[Lag]:
        """Return what the commit of these blocks must tell; nothing if all have them, or may yet."""
        lag = []
        for record in records:
            put = self._puts.get(record.block)
            if put is None:
                lag.append(Lag(record.block, numbers_in(self._all)))
            elif put.lacking and not put.committed:
                lag.append(Lag(record.block, numbers_in(put.lacking)))
        return lag

    def committed(self, records: Iterable[BlockRecord], told: list[Lag]) -> None:
        """The blocks were committed, and `told` was remembered."""
        known = {block: mask_of(numbers) for block, numbers in told} if told else {}
        for record in records:
            put = self._puts.get(record.block)
            if put is None or put.committed:
                continue
            put.committed = True
            if missed := put.lacking & ~known.get(record.block, 0):
                self._tell_later(record.block, missed)
        for number in sorted({number for _, numbers in told for number in numbers}):
            self._lags(number)

    def in_doubt(self, records: Iterable[BlockRecord]) -> None:
        """A commit of these blocks failed, and may have been carried out: who lacks them is told in any case.

        Of blocks that are not committed the metadata server remembers nothing; should the call come once
        more, its commit tells it again.
        """
        for record in records:
            put = self._puts.get(record.block)
            if put is not None and not put.committed:
                put.doubtful = True
                if put.lacking:
                    self._tell_later(record.block, put.lacking)

    def _tell_later(self, block: bytes, mask: int) -> None:
        self._untold[block] = self._untold.get(block, 0) | mask
        self._forget_oldest()
        if not self._telling:
            self._telling = True
            self._background.start(self._tell(), "telling who lags")

    def _forget_oldest(self) -> None:
        """Keep no more than one message can tell; what is forgotten, inspections find."""
        while len(self._untold) > MOST_PUTS:
            self._untold.popitem(last=False)

    async def _tell(self) -> None:
        """Tell what is not told yet, until it is: also while the metadata server is away."""
        try:
            while self._untold:
                untold, self._untold = self._untold, OrderedDict()
                try:
                    lag = [Lag(block, numbers_in(mask)) for block, mask in untold.items()]
                    await self._metadata.ask(BookkeepingMethods.note_lag, lag)
                except QuorumfsError as error:
                    log.warning("who lags is not remembered yet: %s", error.message)
                    newer, self._untold = self._untold, untold
                    for block, mask in newer.items():
                        untold[block] = untold.get(block, 0) | mask
                    self._forget_oldest()
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                mask = 0
                for servers in untold.values():
                    mask |= servers
                for number in numbers_in(mask):
                    self._lags(number)
        finally:
            self._telling = False
