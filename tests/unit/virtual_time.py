"""Runs an asynchronous scenario in virtual time: no wait takes long, and its seed is all that decides."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.sim.loop import SimLoop
from tests.sim.seams import StandIn

WALL_CLOCK_START_SECONDS = 1_800_000_000
CLOCKED = ("mediator", "wire", "tests")


def run_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[[], Coroutine[Any, Any, Any]], seconds: float
) -> None:
    """Run what `begin` makes to its end on a loop whose time passes only while nothing is to be done.

    Args:
        monkeypatch: with it, the modules that have a clock get the loop's until the end of the scenario.
        begin: makes the scenario.
        seconds: how much virtual time it may take.
    """
    loop = SimLoop(lambda: 0.001)
    clock = StandIn(
        time,
        monotonic=loop.time,
        perf_counter=loop.time,
        time=lambda: WALL_CLOCK_START_SECONDS + loop.time(),
        time_ns=lambda: int((WALL_CLOCK_START_SECONDS + loop.time()) * 1e9),
    )

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await begin()

    with monkeypatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        clocked = [module for name, module in sys.modules.items() if name.split(".")[0] in CLOCKED]
        for module in [module for module in clocked if vars(module).get("time") is time]:
            patch.setattr(module, "time", clock)
        runner.run(bounded())
