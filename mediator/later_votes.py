"""Votes that no answer waits for: they are asked for when users are quiet, and in any case soon.

It knows neither blocks nor verdicts: what is to be asked comes in as calls. One event loop.
See docs/decisions/0021-votes-after-the-answer.md.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

WITHIN_SECONDS = 10.0
"""A vote is asked for so long after the answer, however busy users are."""
MOST_BYTES = 256 * 1024 * 1024
"""So many bytes of blocks wait for one server's votes; beyond it, votes are asked for at once."""
MOST_VOTES = 8192
"""So many votes of one server wait, however small the blocks."""
AT_ONCE = 2
"""So many of these votes are asked of one server at a time."""
LOOK_SECONDS = 0.5
"""Users are quiet when they have called nothing for so long: a mount gathers writes for a while."""

Ask = Callable[[Callable[[], None]], None]
"""Asks for a vote; it calls its argument, once, when the vote is in."""


def is_time(now: float, due: float, in_flight: int, quiet: bool) -> bool:
    """Tell whether the oldest vote that waits for a server is asked for now.

    Args:
        now: the time, in seconds.
        due: until when it may wait.
        in_flight: how many of these votes the server is busy with.
        quiet: whether users are.
    """
    return in_flight < AT_ONCE and (quiet or now >= due)


class _Waiting(NamedTuple):
    due: float
    size: int
    ask: Ask


class _Queue:
    """The votes of one server."""

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.size = 0
        self.in_flight = 0
        self.at_work = False

    @property
    def is_full(self) -> bool:
        return self.size >= MOST_BYTES or len(self.waiting) >= MOST_VOTES


class LaterVotes:
    """Keeps votes for later, oldest first for each server.

    Args:
        numbers: those of the data servers.
        count_calls: returns a number that grows with every read and write of users.
    """

    def __init__(self, numbers: Iterable[int], count_calls: Callable[[], int]) -> None:
        self._queues = {number: _Queue() for number in numbers}
        self._count_calls = count_calls
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

    def add(self, number: int, size: int, ask: Ask) -> None:
        """Keep a server's vote on `size` bytes for later, or ask for it now, if too many wait."""
        queue = self._queues[number]
        if queue.is_full:
            self._ask(queue, ask)
            return
        queue.waiting.append(_Waiting(time.monotonic() + WITHIN_SECONDS, size, ask))
        queue.size += size
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

    def _work(self, queue: _Queue) -> None:
        if queue.at_work:  # an answer came as soon as it was asked for
            return
        queue.at_work = True
        now = time.monotonic()
        quiet = self._quiet and self._count_calls() == self._calls_seen
        while queue.waiting and is_time(now, queue.waiting[0].due, queue.in_flight, quiet):
            vote = queue.waiting.popleft()
            queue.size -= vote.size
            self._ask(queue, vote.ask)
        queue.at_work = False

    def _ask(self, queue: _Queue, ask: Ask) -> None:
        queue.in_flight += 1
        ask(lambda: self._end(queue))

    def _end(self, queue: _Queue) -> None:
        queue.in_flight -= 1
        self._work(queue)
