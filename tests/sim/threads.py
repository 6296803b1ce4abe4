"""Threads without threads: what fusefs takes from `threading` and `concurrent.futures`, on greenlets.

Only one runs at a time; who runs next is drawn from the simulation's seed. A blocking call gives the
turn to the event loop. The client library runs on these unchanged. One thread.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import types
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextvars import copy_context
from functools import partial
from typing import Any

import greenlet

from tests.sim.loop import PROCESS, SimLoop

SWITCH_PROBABILITY = 0.1


class Scheduler:
    """Runs greenlets as callbacks of the loop."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop, self.rng = loop, rng
        self._hub = greenlet.getcurrent()
        self.numbers = itertools.count(1)
        """Threads have names and idents of these."""

    def start(self, function: Callable[[], Any]) -> greenlet.greenlet:
        """Begin a greenlet of the current process at the loop's next turn."""
        made = greenlet.greenlet(function, parent=self._hub)
        context = copy_context()
        made.gr_context = context
        process = PROCESS.get()
        assert process is not None
        process.kept.append(made)
        self.loop.call_soon(made.switch, context=context.copy())
        return made

    def wait(self, future: asyncio.Future[Any]) -> Any:
        """Give the turn away until a future is done; return its result or raise its error."""
        me = greenlet.getcurrent()
        assert me is not self._hub, "the event loop itself must not block"
        if not future.done():
            future.add_done_callback(lambda _: me.switch(), context=copy_context())
            self._hub.switch()
        return future.result()

    def sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.call_later(max(0.0, seconds), _finish, future)
        self.wait(future)

    def maybe_switch(self) -> None:
        """Let another greenlet run here, sometimes: that is how races are met."""
        if greenlet.getcurrent() is not self._hub and self.rng.random() < SWITCH_PROBABILITY:
            self.sleep(0)


def _finish(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(True)


def _give_up(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(False)


class Waiters:
    """Greenlets that wait for something, each with a future."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.futures: list[asyncio.Future[Any]] = []

    def wait(self, timeout: float | None) -> bool:
        loop = self._scheduler.loop
        future = loop.create_future()
        self.futures.append(future)
        timer = None if timeout is None else loop.call_later(max(0.0, timeout), _give_up, future)
        woken = bool(self._scheduler.wait(future))
        if timer is not None:
            timer.cancel()
        if future in self.futures:
            self.futures.remove(future)
        return woken

    def wake(self, count: int) -> None:
        for _ in range(min(count, len(self.futures))):
            _finish(self.futures.pop(self._scheduler.rng.randrange(len(self.futures))))


class Lock:
    """Stands for threading.Lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False
        self._waiters = Waiters(scheduler)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._scheduler.maybe_switch()
        until = None if timeout < 0 else self._scheduler.loop.time() + timeout
        while self._held:
            if not blocking or (until is not None and self._scheduler.loop.time() >= until):
                return False
            self._waiters.wait(None if until is None else until - self._scheduler.loop.time())
        self._held = True
        return True

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        self._waiters.wake(1)

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """Stands for threading.RLock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._lock = Lock(scheduler)
        self._owner: object = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = greenlet.getcurrent()
        if self._owner is me:
            self._depth += 1
            return True
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner, self._depth = me, 1
        return True

    def release(self) -> None:
        if self._owner is not greenlet.getcurrent():
            raise RuntimeError("cannot release un-acquired lock")
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()

    def free(self) -> int:
        depth, self._depth, self._owner = self._depth, 0, None
        self._lock.release()
        return depth

    def take_back(self, depth: int) -> None:
        self._lock.acquire()
        self._owner, self._depth = greenlet.getcurrent(), depth

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """Stands for threading.Condition."""

    def __init__(self, scheduler: Scheduler, lock: Any = None) -> None:
        self._scheduler = scheduler
        self._lock = lock if lock is not None else RLock(scheduler)
        self._waiters = Waiters(scheduler)
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return bool(self._lock.acquire())

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        depth = self._lock.free() if isinstance(self._lock, RLock) else self._lock.release()
        woken = self._waiters.wait(timeout)
        if isinstance(self._lock, RLock):
            self._lock.take_back(depth)
        else:
            self._lock.acquire()
        return woken

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until = None if timeout is None else self._scheduler.loop.time() + timeout
        while not (result := predicate()):
            if until is not None and self._scheduler.loop.time() >= until:
                break
            self.wait(None if until is None else until - self._scheduler.loop.time())
        return result

    def notify(self, n: int = 1) -> None:
        self._waiters.wake(n)

    def notify_all(self) -> None:
        self._waiters.wake(len(self._waiters.futures))


class Semaphore:
    """Stands for threading.Semaphore."""

    def __init__(self, scheduler: Scheduler, value: int = 1) -> None:
        self._scheduler = scheduler
        self._value = value
        self._waiters = Waiters(scheduler)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        until = None if timeout is None else self._scheduler.loop.time() + timeout
        while self._value <= 0:
            if not blocking or (until is not None and self._scheduler.loop.time() >= until):
                return False
            self._waiters.wait(None if until is None else until - self._scheduler.loop.time())
        self._value -= 1
        return True

    def release(self, n: int = 1) -> None:
        self._value += n
        self._waiters.wake(n)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Event:
    """Stands for threading.Event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._flag = False
        self._waiters = Waiters(scheduler)

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        self._waiters.wake(len(self._waiters.futures))

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            self._waiters.wait(timeout)
        return self._flag


class Thread:
    """Stands for threading.Thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self._scheduler = scheduler
        self.name, self.daemon = name or f"thread-{next(scheduler.numbers)}", daemon
        self.ident = next(scheduler.numbers)
        self._target, self._args, self._kwargs = target, args, kwargs or {}
        self._started = self._ended = False
        self._done = Event(scheduler)

    def start(self) -> None:
        self._started = True
        self._scheduler.start(self.run)

    def run(self) -> None:
        try:
            if self._target is not None:
                self._target(*self._args, **self._kwargs)
        finally:
            self._ended = True
            self._done.set()

    def join(self, timeout: float | None = None) -> None:
        self._done.wait(timeout)

    def is_alive(self) -> bool:
        return self._started and not self._ended


class Future:
    """The part of concurrent.futures.Future that is used."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._event = Event(scheduler)
        self._state, self._value = "pending", None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], Any]] = []

    def cancel(self) -> bool:
        if self._state == "pending":
            self._end("cancelled", None, CancelledError())
        return self._state == "cancelled"

    def cancelled(self) -> bool:
        return self._state == "cancelled"

    def running(self) -> bool:
        return self._state == "running"

    def done(self) -> bool:
        return self._state in ("done", "cancelled")

    def result(self, timeout: float | None = None) -> Any:
        if not self.done() and not self._event.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self.done() and not self._event.wait(timeout):
            raise TimeoutError
        if self._state == "cancelled":
            raise CancelledError
        return self._error

    def add_done_callback(self, function: Callable[[Any], Any]) -> None:
        if self.done():
            function(self)
        else:
            self._callbacks.append(function)

    def set_running_or_notify_cancel(self) -> bool:
        if self._state == "cancelled":
            return False
        self._state = "running"
        return True

    def set_result(self, value: Any) -> None:
        self._end("done", value, None)

    def set_exception(self, error: BaseException) -> None:
        self._end("done", None, error)

    def _end(self, state: str, value: Any, error: BaseException | None) -> None:
        self._state, self._value, self._error = state, value, error
        self._event.set()
        for function in self._callbacks:
            function(self)


class ThreadPoolExecutor:
    """Stands for concurrent.futures.ThreadPoolExecutor."""

    def __init__(
        self, scheduler: Scheduler, max_workers: int | None = None, thread_name_prefix: str = "", **_: Any
    ) -> None:
        self._scheduler = scheduler
        self._most, self._name = max_workers or 4, thread_name_prefix
        self._queue: list[tuple[Any, Any, Any, Any]] = []
        self._running = 0
        self._threads: list[Any] = []
        self._closed = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = Future(self._scheduler)
        self._queue.append((future, function, args, kwargs))
        if self._running < self._most:
            self._running += 1
            thread = Thread(self._scheduler, target=self._work, name=self._name)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while self._queue:
            future, function, args, kwargs = self._queue.pop(0)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                value = function(*args, **kwargs)
            except BaseException as error:
                future._end("done", None, error)
            else:
                future._end("done", value, None)
        self._running -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            for future, *_ in self._queue:
                future.cancel()
        if wait:
            for thread in list(self._threads):
                if thread.is_alive():
                    thread.join()


def make(scheduler: Scheduler) -> types.SimpleNamespace:
    """Return what stands for the module `threading`, and for the pools."""
    kinds = (Lock, RLock, Condition, Semaphore, Event, Thread, Future, ThreadPoolExecutor)
    return types.SimpleNamespace(
        **{kind.__name__: partial(kind, scheduler) for kind in kinds},
        BoundedSemaphore=partial(Semaphore, scheduler),
        get_ident=lambda: id(greenlet.getcurrent()),
        get_native_id=lambda: id(greenlet.getcurrent()),
        current_thread=greenlet.getcurrent,
        local=type("local", (), {}),
    )
