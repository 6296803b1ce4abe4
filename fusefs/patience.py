"""How long the mount's threads wait for servers: each request as a whole, and each call in it.

Where the setting `unavailable = "wait"` asks for it, servers that are away are waited for until a signal.

A call that fails because servers are away is made again and again, the very same call, so that one with a
ticket is carried out once. A thread that answers a program's request says so (`asked`): its wait ends when
the program is sent a signal. All others wait until the servers are back or the mount ends. Where nobody waits
so, a thread that answers a request says how long that may take in all (`begin`): it may be many calls, and
their deadlines do not add up (promise P7). Safe in any thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from wire.blocking import LEAST_SECONDS
from wire.blocking_links import Duty, NoDuty
from wire.config import Deadlines, Unavailability
from wire.errors import (
    GracePeriod,
    Interrupted,
    QuorumfsError,
    ReadRefused,
    TransportError,
    Unavailable,
    WriteFailed,
    WriteRefused,
)

R = TypeVar("R")

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
LOOK_SECONDS = 0.1
"""A thread that waits looks so often whether it is to go on waiting."""
SLOW_SECONDS = 1.0
"""A call that is under way, and may just be slow, is not interrupted before."""
MOST_WAITING = 112
"""So many requests wait at once at most; more fail at their deadlines."""


def is_away(error: QuorumfsError) -> bool:
    """Tell whether a call failed because of servers that may come back, so that it may succeed later."""
    if isinstance(error, ReadRefused):
        votes = error.detail.get("votes", {})
        return error.detail.get("reason") != "superseded" and "down" in votes.values()
    return isinstance(error, TransportError | GracePeriod | WriteRefused | WriteFailed)


class CallLock:
    """A lock that is held over calls to servers, which may be away for as long as anybody waits.

    `look` raises Interrupted if what the thread that waits here answers has been interrupted.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._lock, self._look = threading.Lock(), look

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=LOOK_SECONDS):
            self._look()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class SharedDuty:
    """What the threads of a mount do in turn, taking the kernel's requests; nothing before a mount."""

    def __init__(self) -> None:
        self._of: Duty = NoDuty()

    def is_of(self, duty: Duty) -> None:
        """Say whose duty it is to know."""
        self._of = duty

    def descriptor(self) -> int:
        return self._of.descriptor()

    def pass_on(self) -> None:
        self._of.pass_on()

    def take_aside(self) -> bool:
        return self._of.take_aside()


class Patience:
    """Whether and how the threads of one mount wait.

    Args:
        unavailable: "fail": they do not, but for what their calls do before the deadline.
        deadlines: of these calls.
    """

    def __init__(self, unavailable: Unavailability = "fail", deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()
        self._ended = threading.Event()
        self._until: dict[int, float] = {}
        """By thread: until when the request that it answers may take."""
        self._askers: dict[int, Callable[[], bool]] = {}
        self._waiting: set[int] = set()
        self.duty = SharedDuty()
        if unavailable == "fail":
            self._ended.set()

    @property
    def waits(self) -> bool:
        """Whether calls wait for servers that are away."""
        return not self._ended.is_set()

    def end(self) -> None:
        """From now on nobody waits: who does gets the error that he waits about."""
        self._ended.set()

    def begin(self, seconds: float) -> None:
        """Note that this thread begins to answer a request, which may take so long unless calls wait."""
        if self._ended.is_set():
            self._until[threading.get_ident()] = time.monotonic() + seconds

    def done(self) -> None:
        """Note that this thread has answered it."""
        self._until.pop(threading.get_ident(), None)

    def left(self, seconds: float) -> float:
        """Return how long a call of this thread may take: `seconds`, or what is left of its request's time.

        It is tried for LEAST_SECONDS in any case: what it waited for may be over.
        """
        until = self._until.get(threading.get_ident())
        return seconds if until is None else min(seconds, max(LEAST_SECONDS, until - time.monotonic()))

    def go_on(self, seconds: float) -> None:
        """Leave the request that this thread answers so long at least: what took its time was done."""
        thread = threading.get_ident()
        if (until := self._until.get(thread)) is not None:
            self._until[thread] = max(until, time.monotonic() + seconds)

    def is_over(self) -> bool:
        """Tell whether the request that this thread answers has taken all its time."""
        return self._until.get(threading.get_ident(), math.inf) <= time.monotonic()

    @contextmanager
    def asked(self, is_interrupted: Callable[[], bool]) -> Iterator[None]:
        """In this block the thread answers a request, about which `is_interrupted` tells."""
        thread = threading.get_ident()
        self._askers[thread] = is_interrupted
        try:
            yield
        finally:
            del self._askers[thread]

    def is_asked(self) -> bool:
        """Tell whether this thread answers a request that may be interrupted."""
        return threading.get_ident() in self._askers

    def look(self) -> None:
        """Raise Interrupted if what this thread answers has been interrupted."""
        is_interrupted = self._askers.get(threading.get_ident())
        if is_interrupted is not None and is_interrupted():
            raise Interrupted("interrupted while the servers were away")

    def persist(self, call: Callable[[], R]) -> R:
        """Return what a call returns, made again while it fails because servers are away.

        Raises:
            Interrupted: a signal ended the wait. The call may be carried out.
            QuorumfsError: what else the call raises; anything when nobody waits.
        """
        if not self.waits:
            return call()
        thread, again = threading.get_ident(), False
        try:
            while True:
                try:
                    return call()
                except QuorumfsError as error:
                    error.resent = error.resent or again
                    if not is_away(error):
                        raise
                    if not again:
                        log.warning("a call waits for servers that are away: %s", error)
                    again = True
                    self._pause(thread, error)
        finally:
            self._waiting.discard(thread)

    def _pause(self, thread: int, error: QuorumfsError) -> None:
        self._count(thread, error)
        until = time.monotonic() + PAUSE_SECONDS
        while time.monotonic() < until:
            if self._ended.wait(LOOK_SECONDS):
                raise error
            self.look()

    def _count(self, thread: int, error: QuorumfsError) -> None:
        """Count a thread among those that wait; raise the error instead if they are too many already."""
        if thread in self._askers and thread not in self._waiting:
            if len(self._waiting) >= MOST_WAITING:
                raise error
            self._waiting.add(thread)

    def result_of(self, future: Future[R]) -> R:
        """Return a future's result, or raise Interrupted; what works on it goes on then."""
        thread, seconds = threading.get_ident(), SLOW_SECONDS
        try:
            while not future.done() and thread in self._askers:
                try:
                    return future.result(seconds)
                except TimeoutError:
                    self._count(thread, Unavailable("too many requests wait for servers already"))
                    self.look()
                seconds = LOOK_SECONDS
        finally:
            self._waiting.discard(thread)
        return future.result()

    def acquire(self, lock: threading.Semaphore, seconds: float, otherwise: str) -> None:
        """Take a semaphore. Raises Unavailable, which says `otherwise`, if it is not free in time."""

        def take() -> None:
            until = time.monotonic() + self.left(seconds)
            while not lock.acquire(timeout=LOOK_SECONDS):
                self.look()
                if time.monotonic() > until:
                    raise Unavailable(otherwise)

        self.persist(take)
