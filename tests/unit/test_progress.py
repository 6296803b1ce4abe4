"""The time left: from how the estimated work that is done went."""

from __future__ import annotations

import pytest

from tools.progress import seconds_left


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
