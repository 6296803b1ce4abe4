"""Time at risk: what is integrated over a clock of the test, and what a mediator sees of servers that lag."""

from __future__ import annotations

from typing import Any

import pytest

from mediator.risk import RiskWatch, TimeAtRisk
from tests.unit.mediator_fakes import run, world
from tools.status import risk_in_words
from wire.errors import QuorumfsError
from wire.messages import Lag


def test_blocks_are_integrated_over_time() -> None:
    at_risk = TimeAtRisk()
    for now, blocks in [(100.0, 0), (110.0, 0), (111.0, 10), (121.0, 10), (125.0, 0), (200.0, 0)]:
        at_risk.saw(now, blocks)
    assert at_risk.as_data() == {
        "blocks": 0,
        "block_seconds": pytest.approx(5 + 100 + 20),
        "watched_seconds": pytest.approx(100.0),
    }


def test_what_was_there_before_the_first_look_is_not_known() -> None:
    at_risk = TimeAtRisk()
    at_risk.saw(1e6, 7)
    assert at_risk.as_data() == {"blocks": 7, "block_seconds": 0.0, "watched_seconds": 0.0}


def test_a_mediator_counts_blocks_that_more_than_n_minus_qw_servers_lack() -> None:
    now = 0.0

    async def look(watch: RiskWatch, at: float) -> dict[str, Any]:
        nonlocal now
        now = at
        await watch.look()
        return watch.status()

    async def scenario() -> None:
        async with world(5, 3, 4) as w:
            watch = RiskWatch(w.mediator.quorum, w.mediator.metadata, lambda: now)
            spared, risky, worse = (w.commit(bytes([n])) for n in range(3))
            w.meta.note_lag([Lag(spared.block, [5]), Lag(risky.block, [4, 5]), Lag(worse.block, [3, 4, 5])])
            assert (await look(watch, 10.0))["blocks"] == 2
            w.meta.down = True
            with pytest.raises(QuorumfsError):
                await look(watch, 15.0)
            w.meta.down = False
            assert (await look(watch, 20.0))["block_seconds"] == 20.0
            w.meta.clear_lag(4, [risky.block, worse.block])
            assert await look(watch, 20.0) == {"blocks": 1, "block_seconds": 20.0, "watched_seconds": 10.0}
            w.meta.clear_lag(5, [worse.block])
            await look(watch, 20.0)
            assert await look(watch, 99.0) == {"blocks": 0, "block_seconds": 20.0, "watched_seconds": 89.0}

            assert set((await w.mediator.status())["risk"]) == set(watch.status())

    run(scenario())


def test_the_words() -> None:
    risk = {"blocks": 3, "block_seconds": 41.7, "watched_seconds": 3723.9}
    assert risk_in_words(risk, 4) == (
        "time at risk: 42 block-seconds in 1:02:03;"
        " now 3 blocks are known to have fewer than Qw=4 good copies"
    )
