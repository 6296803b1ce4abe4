"""The ETA of a refill: right within a factor of two, whatever pauses, and however the speed changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mediator.estimate import ABOUT_TO_END_SECONDS, STEADY, Costs, Eta, Point, Rate, Span, steadiness, tell
from mediator.progress import LEAST_SECONDS, WARM_SECONDS, WINDOW_SECONDS, RefillProgress, WorkClock
from tools.refill import watch_refill, what_is_left
from wire.blocking import BlockingClient
from wire.methods.common import CommonMethods
from wire.methods.mediator import MediatorMethods


class Clock:
    """A refill over time that passes only when it is told to."""

    def __init__(self, sizes: list[int], costs: Costs | None = None) -> None:
        self.now = 1000.0
        self.sizes = sizes
        self.progress = RefillProgress(1, self.now, work=WorkClock(costs or Costs()))
        self.progress.found(len(sizes), sum(sizes))

    def work(self, cost: Callable[[int], float], blocks: int) -> None:
        """Fill so many of the blocks, each at a cost in seconds."""
        self.progress.work.begin(self.now)
        for size in self.sizes[:blocks]:
            self.now += cost(size)
            self.progress.filled(self.now, size)
        del self.sizes[:blocks]
        self.progress.work.end(self.now)

    def told(self) -> dict[str, Any]:
        """Return what the progress says now."""
        return self.progress.as_data(self.now)

    def is_right(self, cost: Callable[[int], float]) -> None:
        """Check the ETA, which must be told, and its bounds, against what is really to come."""
        said, truth = self.told(), sum(map(cost, self.sizes))
        assert said["eta_seconds"] is not None, (said, truth)
        assert truth / 2 <= said["eta_seconds"] <= truth * 2, (said, truth)
        assert said["eta_least_seconds"] <= truth <= said["eta_most_seconds"], (said, truth)

    def is_not_wrong(self, cost: Callable[[int], float]) -> None:
        """Check what is told against what is really to come, if anything is told."""
        said, truth = self.told(), sum(map(cost, self.sizes))
        if said["eta_seconds"] is not None:
            assert truth / 2 <= said["eta_seconds"] <= truth * 2, (said, truth)
        if said["eta_least_seconds"] is not None:
            assert said["eta_least_seconds"] <= truth <= (said["eta_most_seconds"] or truth), (said, truth)


def by_bytes(rate: float) -> Callable[[int], float]:
    """Blocks cost what their bytes do."""
    return lambda size: size / rate


@pytest.mark.parametrize(("rate", "blocks"), [(1e5, 3000), (1e7, 3000), (1e9, 30_000)])
def test_at_a_constant_rate(rate: float, blocks: int) -> None:
    clock = Clock([100_000] * blocks)
    while len(clock.sizes) > blocks // 300:
        clock.work(by_bytes(rate), blocks // 300)
        said, truth = clock.told(), len(clock.sizes) * 100_000 / rate
        assert said["bytes_per_second"] == pytest.approx(rate)
        if clock.now - 1000.0 < WARM_SECONDS + LEAST_SECONDS:
            assert said["eta_seconds"] is None, "the first blocks are no measure"
        elif clock.now - 1000.0 > 7 and len(clock.sizes) < blocks - 100:
            if truth * STEADY > ABOUT_TO_END_SECONDS:
                assert said["eta_seconds"] == pytest.approx(truth)
            else:
                assert (said["eta_least_seconds"], said["eta_seconds"]) == (0.0, None), "about to end"
        clock.is_not_wrong(by_bytes(rate))
        assert (said["blocks_left"], said["bytes_left"]) == (len(clock.sizes), sum(clock.sizes))


@pytest.mark.parametrize("factor", [0.1, 0.5, 3.0, 20.0])
def test_a_rate_that_changes_is_known_after_a_window(factor: float) -> None:
    clock = Clock([100_000] * 40_000)
    clock.work(by_bytes(1e7), 3000)
    clock.is_right(by_bytes(1e7))
    later = by_bytes(1e7 * factor)
    clock.work(later, int(WINDOW_SECONDS / later(100_000)) + 60)
    said, truth = clock.told(), len(clock.sizes) * later(100_000)
    assert said["bytes_per_second"] == pytest.approx(1e7 * factor, rel=0.1)
    if 0.5 <= factor <= 2:
        clock.is_right(later)
    else:
        assert said["eta_seconds"] is None, "it may change again"
        assert said["eta_least_seconds"] < truth < said["eta_most_seconds"]


def test_pauses_and_what_was_there_do_not_count() -> None:
    clock, cost = Clock([100_000] * 3000), by_bytes(1e6)
    for n in range(20):
        clock.work(cost, 20)
        clock.now += 600.0
        for size in clock.sizes[:50]:
            clock.progress.was_there(size)
        del clock.sizes[:50]
        if n > 2:
            clock.is_right(cost)
        assert clock.told()["bytes_per_second"] == pytest.approx(1e6)


@pytest.mark.parametrize("seed", range(5))
def test_small_and_large_blocks_where_each_costs_something(seed: int) -> None:
    chance = random.Random(seed)
    clock = Clock([chance.choice([100, 4096, 1 << 20]) for _ in range(6000)])

    def cost(size: int) -> float:
        return chance.uniform(0.5, 1.5) * (0.004 + size / 2e7)

    clock.work(cost, 500)
    clock.is_right(cost)
    while len(clock.sizes) > 100:
        clock.work(cost, 100)
        clock.is_not_wrong(cost)


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

    while clock.sizes:
        clock.work(cost, 15)
        clock.is_not_wrong(cost)


def test_what_large_blocks_cost_is_not_known_while_only_small_ones_were_moved() -> None:
    """Two refills of one server: in the first one only bounds are told, until large ones have been moved."""
    sizes = [4500] * 20_000 + [1 << 20] * 250
    costs, told = Costs(), []

    def cost(size: int) -> float:
        return 0.0005 + size / 2e8

    for _ in range(2):
        clock = Clock(sizes.copy(), costs)
        clock.work(cost, 18_000)
        clock.is_not_wrong(cost)
        told.append(clock.told()["eta_seconds"])
        clock.work(cost, 2250)
    assert told[0] is None
    assert told[1] == pytest.approx(2000 * cost(4500) + 250 * cost(1 << 20), rel=0.3)


def test_no_faster_than_it_may_go() -> None:
    clock = Clock([7000] * 1500 + [1 << 20] * 160)
    clock.progress.most_bytes_per_second = 1e7
    clock.work(lambda size: 0.002, 1500)
    clock.is_not_wrong(by_bytes(1e7))
    assert clock.told()["eta_least_seconds"] == pytest.approx(160 * (1 << 20) / 1e7 / STEADY)


def test_the_rate_falls_while_nothing_gets_done() -> None:
    clock = Clock([100_000] * 100)
    clock.work(by_bytes(1e6), 50)
    before = clock.told()
    clock.progress.work.begin(clock.now)
    after = clock.progress.as_data(clock.now + 60)
    assert after["bytes_per_second"] < before["bytes_per_second"] / 2
    assert after["eta_most_seconds"] > 2 * before["eta_most_seconds"]
    assert after["eta_seconds"] is None, "it may go on as before"


def test_an_eta_is_told_only_if_it_is_known() -> None:
    clock = Clock([1000] * 100)
    progress = RefillProgress(1, 0.0)
    assert progress.eta(1.0) == Eta(), "what lacks is not known yet"
    assert clock.progress.eta(clock.now) == Eta(), "how fast it goes is not known yet"
    clock.work(by_bytes(1000), 10)
    assert clock.progress.eta(clock.now) == Eta(), "the first blocks are no measure"
    clock.work(by_bytes(1000), 16)
    assert clock.progress.eta(clock.now).seconds is None, "so few blocks do not tell how steady it goes"
    assert clock.progress.eta(clock.now).least is not None
    clock.work(by_bytes(1000), 30)
    clock.is_right(by_bytes(1000))
    clock.progress.failed = 30
    assert clock.progress.eta(clock.now) == Eta(), "most cannot be filled"
    clock.progress.failed = 0
    clock.progress.begin_comparison(100, clock.now)
    assert clock.progress.eta(clock.now) == Eta(), "what lacks is being found out"
    clock.progress.end_comparison(clock.now)
    clock.progress.running, clock.progress.ended = False, clock.now
    assert clock.progress.eta(clock.now) == Eta(), "it has stopped before the end"
    clock.progress.found(0, 0)
    assert clock.progress.eta(clock.now).seconds == 0.0


def test_what_is_told_of_a_span() -> None:
    assert tell(Span(10.0, 5.0, 20.0)) == Eta(10.0, 5.0, 20.0)
    assert tell(Span(10.0, 4.9, 20.0)) == Eta(None, 4.9, 20.0)
    assert tell(Span(10.0, 5.0, 20.1)) == Eta(None, 5.0, 20.1)
    assert tell(Span(0.5, 0.2, 1.9)) == Eta(None, 0.0, ABOUT_TO_END_SECONDS)
    assert tell(Span(0.0, 0.0, 30.0)) == Eta(None, 0.0, 30.0)


def test_the_time_that_comparisons_take_is_part_of_it() -> None:
    clock, cost = Clock([100_000] * 2000), by_bytes(1e7)
    clock.progress.comparisons_left = 2
    clock.work(cost, 1000)
    unknown = clock.progress.eta(clock.now)
    assert unknown.least == pytest.approx(7.5), "perhaps they take no time"
    assert unknown.most == pytest.approx(13.3 + 2 * 2000 * 50e-6, rel=0.01), "or so long"
    clock.progress.begin_comparison(2000, clock.now)
    clock.progress.end_comparison(clock.now + 15)
    assert clock.progress.eta(clock.now).seconds == pytest.approx(10 + 2 * 15)
    clock.progress.found(0, 0)
    assert clock.progress.eta(clock.now).seconds == pytest.approx(2 * 15), "nothing is left but these"


def test_how_steady_work_is() -> None:
    assert steadiness([1.0, 1.0, 1.0, 1.0]) == (2.5, 2.5), "four pieces do not tell"
    assert steadiness([1.0, 1.1, 0.9, 1.1, 0.9]) == (4 / 3, 4 / 3)
    assert steadiness([1.0, 0.5, 3.0, 1.0, 1.0]) == (2.0, 3.0)
    assert steadiness([0.0, 1.0, 1.0, 1.0, 1.0])[0] == float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_costs_are_learnt_from_steps_that_differ(seed: int) -> None:
    chance, costs, rate = random.Random(seed), Costs(), Rate(100.0, 1e6)
    same = [Point(1.0, 100, 1_000_000)] * 10
    for step in same:
        costs.learn(step)
    span = costs.span(rate, same, 1000, 100_000_000)
    assert span is not None
    assert (span.least, span.most) == (pytest.approx(10 * 3 / 4), pytest.approx(100 * 4 / 3)), "unknown"
    for _ in range(40):
        blocks, size = chance.randrange(1, 200), chance.randrange(1, 2_000_000)
        seconds = chance.uniform(0.8, 1.25) * (0.004 * blocks + 0.6e-6 * size)
        costs.learn(Point(seconds, blocks, size))
    span = costs.span(rate, same, 1000, 100_000_000)
    assert span is not None
    assert span.least < 0.004 * 1000 + 0.6e-6 * 1e8 < span.most < 2 * span.expected


def test_few_points_are_kept_of_many_blocks() -> None:
    clock = Clock([10] * 100_000)
    clock.work(lambda _: 0.001, 100_000)
    assert len(clock.progress.work._points) < 50


def test_the_words() -> None:
    clock = Clock([1_000_000] * 100)
    assert what_is_left(clock.told()) == "0 of 100 blocks, 100 left (100.0 MB)"
    clock.work(by_bytes(1e6), 1)
    clock.work(by_bytes(1e6), 19)
    said = "20 of 100 blocks, 80 left (80.0 MB), 1.0 MB/s"
    assert what_is_left(clock.told()) == f"{said}, between 0:00:32 and 0:03:20 to go"
    clock.work(by_bytes(1e6), 30)
    assert what_is_left(clock.told()).endswith(", about 0:00:50 to go")
    assert what_is_left({**clock.told(), "eta_seconds": None, "eta_most_seconds": None}).endswith(
        ", 0:00:38 or more to go"
    )
    clock.work(by_bytes(1e6), 49)
    assert what_is_left(clock.told()).endswith(", about to end")
    clock.progress.begin_comparison(200, clock.now)
    clock.progress.gone_through = 50
    words = "comparing what it has with what it should have: 50 of 200 blocks gone through"
    assert what_is_left(clock.told()) == words


def test_a_refill_that_a_new_mediator_does_not_know_is_asked_for() -> None:
    class NewMediator(BlockingClient):
        def call(self, deadline_seconds: float, method: Any, *args: Any, **kwargs: Any) -> Any:
            if method is CommonMethods.status:
                return {"servers": [{"number": 3, "refill": None}]}
            assert (method, args) == (MediatorMethods.refill, (3,))
            return {"state": "done"}

    assert watch_refill(NewMediator(["unix:nobody"]), 3) == {"state": "done"}
