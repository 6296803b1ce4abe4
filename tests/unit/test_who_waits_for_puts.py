"""Who waits for the disk when a block is put: the event loop while the disk is quick, else a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path

import pytest

import dataserver.segments
from dataserver.block_rings import BlockRings
from dataserver.marks import Milestones, ScrubMark
from dataserver.memory import MemoryStore
from dataserver.quarantine import Quarantine
from dataserver.segment import DIRECT_BYTES
from dataserver.segments import SegmentStore
from dataserver.service import INLINE_BYTES, DataService
from wire.digest import BLOCK_BYTES, Buffer, block_digest
from wire.messages import Identity


class Watched(MemoryStore):
    """A store that tells in which thread blocks were put."""

    quick = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    @property
    def puts_quickly(self) -> bool:
        return self.quick

    def put(self, block: bytes, digest: bytes, data: Buffer) -> None:
        self.threads.append(threading.get_ident())
        super().put(block, digest, data)


@pytest.mark.parametrize("is_durable", [False, True])
@pytest.mark.parametrize(
    ("length", "is_quick", "waits_here"),
    [(BLOCK_BYTES, True, True), (BLOCK_BYTES, False, False), (INLINE_BYTES, False, True)],
)
def test_the_loop_waits_for_a_quick_disk_and_for_short_blocks(
    tmp_path: Path, length: int, is_quick: bool, waits_here: bool, is_durable: bool
) -> None:
    store, identity = Watched(), Identity("dataserver", "test", 1, 1)
    store.quick = is_quick
    losers = Quarantine(tmp_path / "losers", 1, 1.0)
    rings = BlockRings(tmp_path, store)
    service = DataService(store, identity, ScrubMark(tmp_path), Milestones(tmp_path), losers, rings)
    data = bytes(length)

    async def put() -> None:
        stored = service.put(bytes(16), block_digest(data), data, is_durable)
        if isinstance(stored, Awaitable):
            await stored

    asyncio.run(put())
    service.close()
    assert store.count() == 1
    assert (store.threads == [threading.get_ident()]) is waits_here


@pytest.mark.parametrize(("limit_seconds", "is_quick"), [(60.0, True), (0.0, False)])
def test_a_disk_is_quick_after_it_took_a_long_block_in_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_seconds: float, is_quick: bool
) -> None:
    monkeypatch.setattr(dataserver.segments, "QUICK_PUT_SECONDS", limit_seconds)
    store = SegmentStore(tmp_path)

    def put(number: int, length: int) -> None:
        store.put(number.to_bytes(16), block_digest(bytes(length)), bytes(length))

    assert not store.puts_quickly, "nobody knows yet"
    put(1, DIRECT_BYTES - 1)
    assert not store.puts_quickly, "the page cache took that"
    put(2, DIRECT_BYTES)
    assert store.puts_quickly is is_quick
    store.close()
