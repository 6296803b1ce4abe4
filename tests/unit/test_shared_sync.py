"""Syncs that callers share: nothing counts that came too late, and a quick disk is waited for in the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from wire import shared_sync
from wire.shared_sync import SharedSync, waits_here


class FakeDisk:
    """What was written, and what of it is durable; it notes in which threads it was synced."""

    def __init__(self) -> None:
        self.written = self.durable = 0
        self.seconds = 0.0
        self.is_little = True
        self.error: Exception | None = None
        self.threads: list[threading.Thread] = []

    def sync(self) -> None:
        reached = self.written
        self.threads.append(threading.current_thread())
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.durable = reached

    @property
    def was_synced_here(self) -> list[bool]:
        return [thread is threading.main_thread() for thread in self.threads]


@asynccontextmanager
async def shared(disk: FakeDisk, after: Callable[[], None] = lambda: None) -> AsyncIterator[SharedSync]:
    threads = ThreadPoolExecutor(1)
    try:
        yield SharedSync(threads, disk.sync, lambda: disk.is_little, after)
    finally:
        threads.shutdown()


def test_the_loop_waits_for_little_on_a_quick_disk_only() -> None:
    assert waits_here(shared_sync.QUICK_SECONDS / 2, is_little=True)
    assert not waits_here(shared_sync.QUICK_SECONDS, is_little=True)
    assert not waits_here(0.0, is_little=False)


@pytest.fixture(autouse=True)
def any_sync_is_quick_below_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not decide these tests."""
    monkeypatch.setattr(shared_sync, "QUICK_SECONDS", 0.5)


def test_the_first_sync_goes_to_a_thread_and_so_does_the_one_after_a_slow_one() -> None:
    async def scenario() -> None:
        disk = FakeDisk()
        async with shared(disk) as sync:
            await sync()
            await sync()
            disk.seconds = 0.6
            await sync()
            disk.seconds = 0.0
            await sync()
            await sync()
            disk.is_little = False
            await sync()
        assert disk.was_synced_here == [False, True, True, False, True, False]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_little", [True, False])
def test_callers_share_and_nobody_is_told_before_its_bytes_are_durable(is_little: bool) -> None:
    async def scenario() -> None:
        disk = FakeDisk()
        disk.is_little = is_little

        async def write(number: int) -> None:
            await asyncio.sleep(0.001 * (number // 10))
            disk.written += 1
            mine = disk.written
            await asyncio.shield(sync())
            assert disk.durable >= mine

        async with shared(disk) as sync:
            await sync()
            await asyncio.gather(*map(write, range(50)))
            assert disk.durable == 50
            assert len(disk.threads) <= 20

    asyncio.run(scenario())


def test_a_failure_is_told_and_the_next_one_tries_again() -> None:
    async def scenario() -> None:
        disk = FakeDisk()
        ends = []
        async with shared(disk, lambda: ends.append(1)) as sync:
            for is_little in (False, True):
                disk.is_little = is_little
                disk.error = OSError("broken")
                with pytest.raises(OSError, match="broken"):
                    await sync()
                disk.error = None
                await sync()
        assert len(ends) == 4

    asyncio.run(scenario())


def test_those_who_come_while_a_thread_syncs_wait_for_the_next_sync() -> None:
    async def scenario() -> None:
        disk = FakeDisk()
        disk.seconds, disk.is_little = 0.05, False
        async with shared(disk) as sync:
            disk.written = 1
            first = sync()
            while not disk.threads:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            disk.written = 2
            second = sync()
            assert second is sync() and second is not first
            await first
            assert disk.durable == 1
            await second
            assert disk.durable == 2

    asyncio.run(scenario())
