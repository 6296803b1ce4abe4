"""What tests of several tiers share. No fixed sleeps: conditions are awaited with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_SECONDS = 0.02


def wait_until(condition: Callable[[], T], deadline_seconds: float, what: str) -> T:
    """Return the first true value of `condition`, asked again and again.

    Raises:
        AssertionError: it was still false at the deadline; the message has `what` and the last value.
    """
    end = time.monotonic() + deadline_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_seconds:g} s: {what} (last value: {value!r})")
        time.sleep(LOOK_SECONDS)
