"""Whether this mount counts as alone: nobody else changes names, attributes or contents meanwhile.

The metadata server says so in its answer to a heartbeat, for a few seconds, counted from before that was
sent. What is learnt in one *era*, a time without a gap, holds until its end. See metaserver.grants, and
docs/decisions/0019-a-mount-that-is-alone.md. No I/O; safe in any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from fusefs.clock import seconds_passed
from wire.errors import BlockError, NamespaceError, QuorumError, RequestError

MARGIN_SECONDS = 0.25
"""So long before the grant's end the kernel keeps nothing: it counts from when it takes in an answer."""


class _Term(NamedTuple):
    era: int
    until: float


class Grant:
    """This mount's grant, which may be over."""

    def __init__(self, clock: Callable[[], float] = seconds_passed) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._eras = 0
        self._term = _Term(0, 0.0)
        self._in_doubt = False

    def era(self) -> int:
        """Return the number of the era that goes on now, 0 if this mount does not count as alone."""
        era, until = self._term
        return era if era and self._clock() < until else 0

    def seconds_left(self) -> float:
        """Return how long this mount counts as alone at least, 0 if it does not."""
        return max(0.0, self._term.until - self._clock())

    def kernel_seconds(self) -> float:
        """Return how long the kernel may keep what it is told now, by itself: 0 for not at all."""
        return max(0.0, self._term.until - self._clock() - MARGIN_SECONDS)

    def covers(self, seconds: float) -> bool:
        """Tell whether this mount certainly counts as alone for so long from now on."""
        return self._clock() + seconds <= self._term.until

    def extend(self, asked: float, seconds: float) -> None:
        """Note the answer to a heartbeat that was sent at `asked` of the clock; 0: others may be there."""
        with self._lock:
            now, until = self._clock(), asked + seconds
            if seconds <= 0.0 or self._in_doubt:
                self._term = _Term(0, 0.0)
            elif until > now:
                if now >= self._term.until:
                    self._eras += 1
                self._term = _Term(self._eras, max(until, self._term.until))

    def end(self) -> None:
        """Count as not alone from now on: the session or the server is another one."""
        with self._lock:
            self._term = _Term(0, 0.0)

    def doubt(self) -> None:
        """Count as not alone for now: what this mount asked for may still be carried out, unseen."""
        with self._lock:
            self._term = _Term(0, 0.0)
            self._in_doubt = True

    def trust(self) -> None:
        """What was doubted is settled: the next heartbeat may say that this mount is alone."""
        with self._lock:
            self._in_doubt = False


def is_certain(error: BaseException) -> bool:
    """Tell whether a change that failed so was not carried out, and will not be."""
    if not isinstance(error, NamespaceError | QuorumError | BlockError | RequestError):
        return False
    return not error.resent
