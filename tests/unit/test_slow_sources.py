"""Servers that are up but slow or silent hold up neither a read that fills replicas nor a refill."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.unit.mediator_fakes import VOTE_SECONDS, run, world


@pytest.mark.parametrize("silent", range(1, 4))
def test_a_read_that_fills_waits_for_no_silent_server(silent: int) -> None:
    """Filling what is missing decides it, however the silent one would vote."""

    async def scenario() -> None:
        for blank in {1, 2, 3} - {silent}:
            async with world(3, 2, 2) as w:
                record = w.commit(bytes(100_000))
                w.data[blank].delete([record.block])
                w.data[silent].paused = True
                begun = time.monotonic()
                reads = await asyncio.gather(*(w.read(record) for _ in range(20)))
                assert set(reads) == {bytes(100_000)}
                assert time.monotonic() - begun < VOTE_SECONDS * 0.9
                assert w.data[blank].is_good(record)
                assert w.data[blank].calls.count("repair") == 1
                w.data[silent].paused = False
                await w.settle()

    run(scenario())


def test_a_read_that_cannot_fill_yet_is_answered_by_the_silent_server() -> None:
    """What goes wrong with the filling is no error as long as a late vote makes it unnecessary."""

    async def scenario() -> None:
        async with world(3, 2, 2) as w:
            record = w.commit()
            w.data[1].delete([record.block])
            w.data[2].delay_seconds = VOTE_SECONDS * 0.8
            w.meta.paused = True
            assert await w.read(record) == b"1234"
            w.meta.paused = False
            await w.settle()

    run(scenario())


@pytest.mark.parametrize("slow", [1, 2])
def test_a_refill_does_not_wait_for_a_source_that_is_slow(slow: int) -> None:
    """Sources took turns, so that a server that was up but slow had a part of the refill wait for it."""

    async def scenario() -> None:
        async with world(4, 2, 3) as w:
            records = [w.commit(b"%d" % i) for i in range(96)]
            for number in range(1, slow + 1):
                w.data[number].delay_seconds = 0.3
            w.data[4].held.clear()
            begun = time.monotonic()
            for record in records:
                await w.mediator.repairs.fill(w.mediator.health.servers[3], record)
            assert time.monotonic() - begun < 96 * 0.3 / 4
            assert all(w.data[4].is_good(record) for record in records)

    run(scenario())
