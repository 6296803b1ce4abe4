"""How long to wait before a call is sent again: the one place where that is decided.

Exponential with jitter, so that many clients do not come back at the same moment. Source:
M. Brooker, Exponential backoff and jitter, AWS Architecture Blog, 2015. One object serves one
call; it does no I/O and never sleeps itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS = 0.010
LONGEST_SECONDS = 0.500


class Backoff:
    """The waits of one call.

    Args:
        uniform: random.uniform or a seeded stand-in.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._ceiling_seconds = FIRST_SECONDS

    def next_seconds(self) -> float:
        """Return the next wait: at least half of a ceiling that doubles from 10 ms up to 500 ms."""
        ceiling = self._ceiling_seconds
        self._ceiling_seconds = min(2 * ceiling, LONGEST_SECONDS)
        return self._uniform(ceiling / 2, ceiling)
