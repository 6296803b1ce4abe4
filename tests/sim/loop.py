"""An asyncio event loop with virtual time, whose callbacks belong to simulated processes.

Time passes only while nothing is ready to run, and then jumps to the next timer. A callback of a killed
process is never run; one of a stopped process (SIGSTOP) waits until it goes on. One thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


TURNS_MAX = 1_000_000
"""A life has some ten thousand turns of the loop."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, or something works without end: this life would never end."""


class Process:
    """One life of one simulated process: it ends with a kill and does not come back."""

    def __init__(self, name: str, host: str) -> None:
        self.name, self.host = name, host
        self.alive = True
        self.paused = False
        self.backlog: list[tuple[_Guarded, tuple[Any, ...], Context]] = []
        self.at_end: list[Callable[[], None]] = []
        """Called when it is killed: what the kernel would do."""
        self.kept: list[object] = []
        """What must not be finalized while the simulation runs: a dead process runs no code."""

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Timers:
    """Stands where the loop expects a selector: waiting makes virtual time pass."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> list[Any]:
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise Stuck(f"more than {TURNS_MAX} turns of the loop: something works without end")
        if timeout is None:
            raise Stuck("nothing is left to happen")
        if timeout > 0:
            self._loop.now += timeout
        return []

    def close(self) -> None:
        pass


class _Guarded:
    """A callback that runs only while its process does."""

    def __init__(self, callback: Callable[..., Any], context: Context | None) -> None:
        self.callback = callback
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        self.handle: asyncio.Handle | None = None

    def __call__(self, *args: Any) -> None:
        process = self.process
        if process is None or (process.alive and not process.paused):
            self.callback(*args)
        elif process.alive:
            process.backlog.append((self, args, copy_context()))

    def go_on(self, *args: Any) -> None:
        """Run after the process was stopped, unless it was cancelled since."""
        if self.handle is None or not self.handle.cancelled():
            self.callback(*args)


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `disk_seconds` draws how long a job of a thread takes."""

    def __init__(self, disk_seconds: Callable[[], float]) -> None:
        super().__init__()
        self.now = 0.0
        self.network: Any = None
        self._disk_seconds = disk_seconds
        self._selector = _Timers(self)
        self._clock_resolution = 1e-9
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self.now

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> asyncio.Handle:
        guarded = _Guarded(callback, context)
        guarded.handle = super()._call_soon(guarded, args, context)
        return guarded.handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        guarded = _Guarded(callback, context)
        handle = guarded.handle = super().call_at(when, guarded, *args, context=context)
        return handle

    def go_on(self, process: Process) -> None:
        """Let a stopped process run again, with everything that waited for it."""
        process.paused = False
        backlog, process.backlog = process.backlog, []
        for guarded, args, context in backlog:
            self.call_soon(guarded.go_on, *args, context=context)

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
