"""Making things durable for several callers at once, with as few syncs of the disk as will do.

It knows nothing of what is synced. Belongs to one event loop. While the disk is quick and there is little to
write, the loop itself waits for it: handing the work to a thread and back costs more than such a sync takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from math import inf

QUICK_SECONDS = 0.002
"""A disk whose last sync took less is quick."""


def waits_here(last_seconds: float, is_little: bool) -> bool:
    """Tell whether the loop itself may wait for the next sync.

    Args:
        last_seconds: how long the last sync took, wherever it was waited for.
        is_little: whether there is little to write, and nothing else keeps the disk busy.
    """
    return is_little and last_seconds < QUICK_SECONDS


class SharedSync:
    """Makes callers share syncs: those who come while one runs wait together for the next one.

    A sync that had begun before a caller came may not have its bytes, so it never counts.

    Args:
        threads: where a sync that may take long is waited for.
        sync: makes everything durable that was written so far; what it raises, its callers get.
        is_little: as `waits_here` takes it.
        after: called when a sync has ended and its callers were told.
    """

    def __init__(
        self,
        threads: Executor,
        sync: Callable[[], None],
        is_little: Callable[[], bool],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._threads = threads
        self._sync = sync
        self._is_little = is_little
        self._after = after
        self._running = False
        self._last_seconds = inf
        self._next: asyncio.Future[None] | None = None

    def __call__(self) -> asyncio.Future[None]:
        """Return what ends when all that was written before is durable. It is shared: not to be cancelled."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        waiting = self._next
        if not self._running:
            self._begin()
        return waiting

    def _begin(self) -> None:
        self._running = self._next is not None
        if not self._running:
            return
        loop = asyncio.get_running_loop()
        if waits_here(self._last_seconds, self._is_little()):
            loop.call_soon(self._wait_here)  # all who come in this turn of the loop share it
        else:
            waiting, self._next = self._next, None
            work = loop.run_in_executor(self._threads, self._timed)
            work.add_done_callback(lambda done: self._end(waiting, _error_of(done)))

    def _wait_here(self) -> None:
        waiting, self._next = self._next, None
        error: BaseException | None = None
        try:
            self._timed()
        except Exception as raised:
            error = raised
        self._end(waiting, error)

    def _timed(self) -> None:
        begun = time.monotonic()
        try:
            self._sync()
        finally:
            self._last_seconds = time.monotonic() - begun

    def _end(self, waiting: asyncio.Future[None] | None, error: BaseException | None) -> None:
        if waiting is None or waiting.done():
            pass  # whoever waited is gone
        elif error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)
        self._begin()
        self._after()


def _error_of(work: asyncio.Future[None]) -> BaseException | None:
    return asyncio.CancelledError() if work.cancelled() else work.exception()
