"""The time left: from how the estimated work that is done went."""

from __future__ import annotations

from typing import Any

import pytest
from rich.progress import Progress

from tools import progress
from tools.progress import seconds_left, watching


@pytest.mark.parametrize(
    ("elapsed", "done", "total", "left"),
    [
        (5.0, 0.0, 10.0, None),  # nothing is known yet
        (5.0, 5.0, 10.0, 5.0),
        (10.0, 5.0, 10.0, 10.0),  # it goes at half the estimated speed
        (1.0, 5.0, 20.0, 3.0),  # and five times as fast
        (9.0, 10.0, 10.0, 0.0),
        (9.0, 12.0, 10.0, 0.0),  # more was done than was estimated
    ],
)
def test_the_time_left(elapsed: float, done: float, total: float, left: float | None) -> None:
    assert seconds_left(elapsed, done, total) == (left if left is None else pytest.approx(left))


def test_each_kind_of_work_has_its_own_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data servers have as many blocks each: that the first one is done says nothing of the second one."""
    made: list[Progress] = []

    def make(*columns: Any, **settings: Any) -> Progress:
        made.append(Progress(*columns, **settings))
        return made[-1]

    monkeypatch.setattr(progress, "Progress", make)
    with watching("checking") as watch:
        watch("data-1", 0, 1000)
        watch("data-1", 1000, 1000)
        watch("data-2", 0, 1000)
        [task] = made[0].tasks
        assert (task.description, task.completed, task.total) == ("checking data-2", 0, 1000)
        assert not task.finished
        assert task.time_remaining is None
        watch("nobody knows", 0, 0)
        [task] = made[0].tasks
        assert task.total is None
