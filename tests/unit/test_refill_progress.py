"""The ETA of a refill: right within a factor of two, whatever pauses, and however the speed changes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mediator.progress import LEAST_SECONDS, WINDOW_SECONDS, RefillProgress
from tools.status import refill_in_words


class Clock:
    """A refill over time that passes only when it is told to."""

    def __init__(self, sizes: list[int]) -> None:
        self.now = 1000.0
        self.sizes = sizes
        self.progress = RefillProgress(1, self.now)
        self.progress.found(len(sizes), sum(sizes))

    def work(self, cost: Callable[[int], float], blocks: int) -> None:
        """Fill so many of the blocks, each at a cost in seconds."""
        self.progress.work.begin(self.now)
        for size in self.sizes[:blocks]:
            self.now += cost(size)
            self.progress.filled(self.now, size)
        del self.sizes[:blocks]
        self.progress.work.end(self.now)

    def is_right(self, cost: Callable[[int], float]) -> None:
        """Check the ETA against what is really to come."""
        eta, truth = self.progress.as_data(self.now)["eta_seconds"], sum(map(cost, self.sizes))
        assert truth / 2 <= eta <= truth * 2, (eta, truth)


def by_bytes(rate: float) -> Callable[[int], float]:
    """Blocks cost what their bytes do."""
    return lambda size: size / rate


@pytest.mark.parametrize(("rate", "blocks"), [(1e5, 3000), (1e7, 3000), (1e9, 30_000)])
def test_at_a_constant_rate(rate: float, blocks: int) -> None:
    clock = Clock([100_000] * blocks)
    while len(clock.sizes) > 10:
        clock.work(by_bytes(rate), 7)
        said = clock.progress.as_data(clock.now)
        assert said["bytes_per_second"] == pytest.approx(rate)
        if clock.now - 1000.0 < LEAST_SECONDS:
            assert said["eta_seconds"] is None, "the first blocks are no measure"
        else:
            assert said["eta_seconds"] == pytest.approx(len(clock.sizes) * 100_000 / rate)
        assert (said["blocks_left"], said["bytes_left"]) == (len(clock.sizes), sum(clock.sizes))


@pytest.mark.parametrize("factor", [0.1, 0.5, 3.0, 20.0])
def test_a_rate_that_changes_is_known_after_a_window(factor: float) -> None:
    clock = Clock([100_000] * 20_000)
    clock.work(by_bytes(1e7), 3000)
    clock.is_right(by_bytes(1e7))
    later = by_bytes(1e7 * factor)
    clock.work(later, int(WINDOW_SECONDS / later(100_000)) + 60)
    clock.is_right(later)


def test_pauses_and_what_was_there_do_not_count() -> None:
    clock, cost = Clock([100_000] * 3000), by_bytes(1e6)
    for _ in range(20):
        clock.work(cost, 20)
        clock.now += 600.0
        for size in clock.sizes[:50]:
            clock.progress.was_there(size)
        del clock.sizes[:50]
        clock.is_right(cost)
        assert clock.progress.as_data(clock.now)["bytes_per_second"] == pytest.approx(1e6)


@pytest.mark.parametrize("seed", range(5))
def test_small_and_large_blocks_where_each_costs_something(seed: int) -> None:
    chance = random.Random(seed)
    clock = Clock([chance.choice([100, 4096, 1 << 20]) for _ in range(6000)])

    def cost(size: int) -> float:
        return chance.uniform(0.5, 1.5) * (0.004 + size / 2e7)

    while len(clock.sizes) > 100:
        clock.work(cost, 100)
        clock.is_right(cost)


def test_large_blocks_after_small_ones() -> None:
    clock = Clock([500_000] * 600 + [1_000_000] * 600)
    clock.work(lambda size: 0.02 + size / 2e7, 600)
    clock.is_right(lambda size: 0.02 + size / 2e7)


@pytest.mark.parametrize("seconds_a_block", [0.0001, 0.002, 0.02])
def test_soon_after_small_blocks_gave_way_to_large_ones(seconds_a_block: float) -> None:
    """Small files and then a film: a blank server was told a fifth of the time that it took."""
    clock = Clock([7000] * 3000 + [1 << 20] * 400)

    def cost(size: int) -> float:
        return seconds_a_block + size / 1e7

    clock.work(cost, 3000)
    clock.work(cost, 15)
    while len(clock.sizes) > 30:
        clock.is_right(cost)
        clock.work(cost, 15)


def test_no_faster_than_it_may_go() -> None:
    clock = Clock([7000] * 1500 + [1 << 20] * 160)
    clock.progress.most_bytes_per_second = 1e7
    clock.work(lambda size: 0.002, 1500)
    clock.is_right(by_bytes(1e7))


def test_the_rate_falls_while_nothing_gets_done() -> None:
    clock = Clock([100_000] * 100)
    clock.work(by_bytes(1e6), 50)
    before = clock.progress.as_data(clock.now)["eta_seconds"]
    clock.progress.work.begin(clock.now)
    assert clock.progress.as_data(clock.now + 60)["eta_seconds"] > 2 * before


def test_an_eta_is_told_only_if_it_is_known() -> None:
    progress = RefillProgress(1, 0.0)
    assert progress.as_data(1.0)["eta_seconds"] is None, "what lacks is not known yet"
    progress.found(10, 1000)
    assert progress.as_data(1.0)["eta_seconds"] is None, "how fast it goes is not known yet"
    progress.work.begin(1.0)
    progress.filled(1.5, 100)
    assert progress.as_data(1.5)["eta_seconds"] is None, "the first block is no measure"
    assert progress.as_data(2.0)["eta_seconds"] == pytest.approx(9.0)
    progress.comparing = True
    assert progress.as_data(2.0)["eta_seconds"] is None
    progress.comparing, progress.running, progress.ended = False, False, 2.0
    assert progress.as_data(3.0)["eta_seconds"] is None, "it has stopped before the end"
    progress.blocks_done, progress.bytes_done = 10, 1000
    assert progress.as_data(3.0)["eta_seconds"] == 0.0


def test_few_points_are_kept_of_many_blocks() -> None:
    clock = Clock([10] * 100_000)
    clock.work(lambda _: 0.001, 100_000)
    assert len(clock.progress.work._points) < 50


def test_the_words() -> None:
    clock = Clock([1_000_000] * 100)
    clock.work(by_bytes(1e6), 25)
    said = refill_in_words(clock.progress.as_data(clock.now))
    assert said == "25 of 100 blocks, 75 left (75.0 MB), 1.0 MB/s, about 0:01:15 to go"
    clock.progress.comparing = True
    assert "comparing" in refill_in_words(clock.progress.as_data(clock.now))
