"""The mediator's part of compaction, over in-memory servers: what one block must not do to the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.mediator_fakes import World, run, world
from wire.errors import DeadlineExceeded, ReadRefused
from wire.messages import BlockRecord, Reference, SessionInfo, SparseBlock, SparsePage


class CompactingMetaserver:
    """What the metadata server answers about compaction: of each block told, the first byte is used."""

    def __init__(self, w: World, sparse: list[BlockRecord]) -> None:
        self.sparse = sparse
        self.exchanged: list[bytes] = []
        self.world = w
        meta: Any = w.meta
        meta.open_session = lambda name: SessionInfo(9, 30_000, 1)
        meta.renew = meta.close_session = lambda session: None
        meta.abandon_blocks = lambda session, records: None
        meta.sparse_blocks, meta.exchange_block = self.sparse_blocks, self.exchange_block

    def sparse_blocks(self, after: bytes, limit: int, min_age_ms: int) -> SparsePage:
        return SparsePage(b"", [SparseBlock(record, [Reference(7, 0, 1, 0)]) for record in self.sparse])

    def exchange_block(self, session: int, old: bytes, references: list[Reference], new: BlockRecord) -> bool:
        self.exchanged.append(old)
        self.world.meta.committed[new.block] = new
        return True


def test_a_block_that_cannot_be_read_does_not_keep_others_from_being_compacted() -> None:
    async def scenario() -> None:
        async with world(3, 2, 3) as w:
            first, lost, last = (w.commit(bytes([n]) * 1000) for n in range(3))
            meta = CompactingMetaserver(w, [first, lost, last])
            for number in (1, 2):
                w.data[number].damage(lost.block)
            await w.mediator.compactor.run_once()
            assert meta.exchanged == [first.block, last.block]
            assert w.mediator.compactor.status() == {"blocks": 2, "bytes_freed": 1998, "given_up": 1}

    run(scenario())


def test_a_round_ends_when_too_few_servers_are_up_to_read() -> None:
    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            blocks = [w.commit(bytes([n]) * 1000) for n in range(3)]
            meta = CompactingMetaserver(w, blocks)
            w.data[1].down = w.data[2].down = True
            await w.mediator.health.first_look()
            with pytest.raises(ReadRefused):
                await w.mediator.compactor.run_once()
            assert not meta.exchanged

    run(scenario())


def test_who_lacks_a_new_block_is_told_if_its_exchange_fails_and_was_carried_out() -> None:
    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            meta = CompactingMetaserver(w, [w.commit(b"a" * 1000)])

            def answer_too_late(*args: Any) -> bool:
                meta.exchange_block(*args)
                raise DeadlineExceeded

            w.meta.exchange_block = answer_too_late  # type: ignore[attr-defined]
            w.data[3].down = True
            await w.mediator.health.first_look()
            with pytest.raises(DeadlineExceeded):
                await w.mediator.compactor.run_once()
            (new,) = (record for record in w.meta.committed.values() if record.length == 1)
            await asyncio.sleep(1.0)
            assert w.meta.lag == {3: {new.block}}

    run(scenario())
