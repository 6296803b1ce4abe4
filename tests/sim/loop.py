"""An asyncio event loop with virtual time, whose callbacks belong to simulated processes.

Time passes only while nothing is ready to run, and then jumps to the next timer. A callback of a killed
process is never run; one of a stopped process (SIGSTOP) waits until it goes on. One thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from heapq import heapify, heappop, heappush
from typing import Any

from tests.sim.clocks import Clock

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
_CORRECT = Clock()


TURNS_MAX = 1_000_000
"""A life has some ten thousand turns of the loop."""
FEW_TIMERS = 100
"""Of so many it is not worth while to look for those that were cancelled."""
RESOLUTION_SECONDS = 1e-9


class Stuck(Exception):
    """Nothing is ready and no timer is set, or something works without end: this life would never end."""


class Process:
    """One life of one simulated process: it ends with a kill and does not come back."""

    def __init__(self, name: str, host: str, clock: Clock) -> None:
        self.name, self.host, self.clock = name, host, clock
        self.alive = True
        self.paused = False
        self.is_ending = False
        """It was asked to end in good order."""
        self.backlog: list[Soon] = []
        self.at_end: list[Callable[[], None]] = []
        """Called when it is killed: what the kernel would do."""
        self.kept: list[object] = []
        """What must not be finalized while the simulation runs: a dead process runs no code."""

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Soon:
    """What is to be called soon: an asyncio.Handle that knows its process."""

    __slots__ = ("_args", "_callback", "_context", "_process", "is_cancelled")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None) -> None:
        self._callback, self._args = callback, args
        self._context = copy_context() if context is None else context
        self._process = self._context.get(PROCESS)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def run(self, loop: SimLoop) -> None:
        """Call it if its process runs; else it waits with that, or is forgotten with that."""
        process = self._process
        if process is None or (process.alive and not process.paused):
            try:
                self._context.run(self._callback, *self._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                loop.call_exception_handler(
                    {"message": f"Exception in callback {self._callback!r}", "exception": error}
                )
        elif process.alive:
            process.backlog.append(self)


class Timer(float):
    """A moment at which something is to be called: an asyncio.TimerHandle that is compared as a number is."""

    __slots__ = ("is_scheduled", "loop", "soon")
    is_scheduled: bool
    loop: SimLoop
    soon: Soon

    def when(self) -> float:
        return float(self)

    def cancel(self) -> None:
        if not self.soon.is_cancelled:
            self.soon.is_cancelled = True
            self.loop.cancelled_timers += self.is_scheduled

    def cancelled(self) -> bool:
        return self.soon.is_cancelled


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `disk_seconds` draws how long a job of a thread takes."""

    def __init__(self, disk_seconds: Callable[[], float]) -> None:
        super().__init__()
        self.now = 0.0
        self.network: Any = None
        self.cancelled_timers = 0
        """So many of those that wait were cancelled, at most."""
        self._disk_seconds = disk_seconds
        self._soon: deque[Soon] = deque()
        self._timers: list[Timer] = []
        self._turns = 0
        self.set_task_factory(_make_task)

    def time(self) -> float:
        """Return what the clock of the process that runs now shows."""
        process = PROCESS.get()
        return self.now if process is None else process.clock.monotonic(self.now)

    def wall_clock(self) -> float:
        """Return the date of the host of the process that runs now, in seconds since 1970."""
        process = PROCESS.get()
        return (_CORRECT if process is None else process.clock).wall(self.now)

    def _write_to_self(self) -> None:
        pass

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        soon = Soon(callback, args, context)
        self._soon.append(soon)
        return soon

    call_soon_threadsafe = call_soon
    """There is one thread only."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        process = PROCESS.get()
        moment = when if process is None else process.clock.moment(when)
        return self.call_at_moment(moment, callback, *args, context=context)

    def call_at_moment(self, moment: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """Call it at this virtual time, whatever a clock shows then."""
        timer = Timer(moment)
        timer.soon, timer.loop, timer.is_scheduled = Soon(callback, args, context), self, True
        heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        process = PROCESS.get()
        seconds = delay if process is None else delay / process.clock.rate
        return self.call_at_moment(self.now + seconds, callback, *args, context=context)

    def _run_once(self) -> None:
        """Take a turn: call what is ready, or let time pass until something is."""
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise Stuck(f"more than {TURNS_MAX} turns of the loop: something works without end")
        if self.cancelled_timers:
            self._drop_cancelled()
        timers, soon = self._timers, self._soon
        if not soon and not self._stopping:
            if not timers:
                raise Stuck("nothing is left to happen")
            self.now += max(0.0, timers[0] - self.now)
        end = self.now + RESOLUTION_SECONDS
        while timers and timers[0] < end:
            timer = heappop(timers)
            timer.is_scheduled = False
            soon.append(timer.soon)
        for _ in range(len(soon)):
            each = soon.popleft()
            if not each.is_cancelled:
                each.run(self)

    def _drop_cancelled(self) -> None:
        """Forget cancelled timers: all of them if there are many, else those that are next."""
        timers = self._timers
        if len(timers) > FEW_TIMERS and self.cancelled_timers / len(timers) > 0.5:
            for timer in timers:
                timer.is_scheduled = not timer.soon.is_cancelled
            self._timers = [timer for timer in timers if timer.is_scheduled]
            heapify(self._timers)
            self.cancelled_timers = 0
            return
        while timers and timers[0].soon.is_cancelled:
            self.cancelled_timers -= 1
            heappop(timers).is_scheduled = False

    def go_on(self, process: Process) -> None:
        """Let a stopped process run again, with everything that waited for it."""
        process.paused = False
        self._soon.extend(process.backlog)
        process.backlog = []

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> Any:
        """Carry a job out at one moment of virtual time, some time from now."""
        future = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._disk_seconds(), work)
        return future

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(factory, f"{host}:{port}")

    async def create_unix_connection(self, factory: Any, path: Any = None, **_: Any) -> Any:
        return await self.network.connect(factory, f"unix:{path}")

    async def create_server(self, factory: Any, *_: Any, sock: Any, **__: Any) -> Any:
        return self.network.listen(factory, sock.address)

    create_unix_server = create_server


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **more)
    process = PROCESS.get()
    if process is not None:
        process.kept.append(task)  # a task that is collected would run its `finally` clauses
    return task
