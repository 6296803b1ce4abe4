"""Votes that no answer waits for: they are asked for when users are quiet, and in any case soon.

It knows neither blocks nor verdicts: what is to be voted on comes in, and goes out several at a time to who
asks. One event loop. See docs/decisions/0021-votes-after-the-answer.md.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

WITHIN_SECONDS = 10.0
"""A vote is asked for so long after the answer, however busy users are."""
MOST_BYTES = 256 * 1024 * 1024
"""So many bytes of blocks wait for one server's votes; beyond it, the oldest are asked for at once."""
MOST_VOTES = 8192
"""So many votes of one server wait, however small the blocks."""
CALL_VOTES = 64
CALL_BYTES = 1024 * 1024
"""One call asks for so many votes at most, on so many bytes, or for one."""
AT_ONCE = 2
"""So many of these calls are made to one server at a time, but where too many votes wait."""
LOOK_SECONDS = 0.5
"""Users are quiet when they have called nothing for so long: a mount gathers writes for a while."""

Ask = Callable[[int, list[T], Callable[[], None]], None]
"""Asks a server for its votes; it calls its last argument, once, when they are in."""


def is_time(now: float, due: float, quiet: bool) -> bool:
    """Tell whether a vote is asked for now.

    Args:
        now: the time, in seconds.
        due: until when it may wait.
        quiet: whether users are.
    """
    return quiet or now >= due


class _Waiting(NamedTuple, Generic[T]):
    due: float
    size: int
    subject: T


class _Queue(Generic[T]):
    """The votes of one server."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: deque[_Waiting[T]] = deque()
        self.size = 0
        self.in_flight = 0
        self.calls = 0
        self.at_work = False

    @property
    def is_full(self) -> bool:
        return self.size > MOST_BYTES or len(self.waiting) > MOST_VOTES

    def take(self, now: float, quiet: bool) -> list[T]:
        """Take the oldest votes that it is time for, as many as one call asks for; all, while it is full."""
        taken: list[T] = []
        size, quiet = 0, quiet or self.is_full
        while self.waiting and is_time(now, self.waiting[0].due, quiet):
            vote = self.waiting[0]
            if taken and (len(taken) == CALL_VOTES or size + vote.size > CALL_BYTES):
                break
            self.waiting.popleft()
            taken.append(vote.subject)
            size += vote.size
        self.size -= size
        return taken


class LaterVotes(Generic[T]):
    """Keeps votes for later, oldest first for each server.

    Args:
        numbers: those of the data servers.
        count_calls: returns a number that grows with every read and write of users.
        ask: asks for some of them.
    """

    def __init__(self, numbers: Iterable[int], count_calls: Callable[[], int], ask: Ask[T]) -> None:
        self._queues = {number: _Queue[T](number) for number in numbers}
        self._count_calls = count_calls
        self._ask = ask
        self._calls_seen = 0
        self._quiet = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many votes were not asked for yet, or are not in."""
        return sum(len(queue.waiting) + queue.in_flight for queue in self._queues.values())

    def status(self) -> dict[str, Any]:
        """Return how many votes wait, on how many bytes of blocks."""
        return {"waiting": self.waiting, "bytes": sum(queue.size for queue in self._queues.values())}

    def add(self, number: int, size: int, subject: T) -> None:
        """Keep a server's vote on `size` bytes for later; if too many wait, the oldest go out now."""
        queue = self._queues[number]
        queue.waiting.append(_Waiting(time.monotonic() + WITHIN_SECONDS, size, subject))
        queue.size += size
        if queue.is_full:
            self._call(queue, queue.take(time.monotonic(), self._quiet))
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None:
            self._calls_seen = self._count_calls()
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Ask for what is due; if nobody has called since the last look, for more."""
        self._timer = None
        self._quiet = self._count_calls() == self._calls_seen
        for queue in self._queues.values():
            self._work(queue)
        if any(queue.waiting for queue in self._queues.values()):
            self._look_later()

    def _work(self, queue: _Queue[T]) -> None:
        if queue.at_work:  # an answer came as soon as it was asked for
            return
        queue.at_work = True
        now = time.monotonic()
        quiet = self._quiet and self._count_calls() == self._calls_seen
        while queue.calls < AT_ONCE and (taken := queue.take(now, quiet)):
            self._call(queue, taken)
        queue.at_work = False

    def _call(self, queue: _Queue[T], taken: list[T]) -> None:
        queue.calls += 1
        queue.in_flight += len(taken)
        self._ask(queue.number, taken, lambda: self._end(queue, len(taken)))

    def _end(self, queue: _Queue[T], count: int) -> None:
        queue.calls -= 1
        queue.in_flight -= count
        self._work(queue)
