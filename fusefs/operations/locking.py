"""Locks as libfuse asks for them, and the requests that wait for one.

A request that waits is answered by a thread of its own, so that those of serving stay free. A signal
to the waiting program ends the wait with EINTR at once. What waits holds nothing: a lock is granted
to a call that could have it at once, and to no other.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import threading
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self

from fusefs.handles import Handle
from fusefs.locks import FileLocks
from fusefs.operations import errno_of
from fusefs.operations.structures import Interrupted, Library, LockRange
from fusefs.patience import Patience
from wire.errors import NoLocks, WouldBlock
from wire.locks import LAST
from wire.messages import FileLock, LockHolder

log = logging.getLogger(__name__)

MOST_WAITERS = 256


class _Waiting:
    """A request that waits. Its `mutex` is held to decide who answers it: exactly one does."""

    def __init__(self, request: int) -> None:
        self.request = request
        self.mutex = threading.Lock()
        self.interrupted = threading.Event()
        self.busy = True
        """The thread is about to answer, or registering: whoever interrupts leaves the answer to it."""
        self.answered = False


class Waiters:
    """The requests of one mount that wait for locks."""

    def __init__(self, library: Library, locks: FileLocks, patience: Patience) -> None:
        self._library, self._locks, self._patience = library, locks, patience
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._interrupted = Interrupted(self._interrupt)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what still waits unanswered: the kernel has ended it with the mount."""
        self._closed = True
        for waiting in list(self._waiting.values()):
            with waiting.mutex:
                waiting.answered = True

    def begin(self, request: int, handle: Handle, lock: FileLock) -> None:
        """Answer a request when its lock was granted. Raises NoLocks when too many wait."""
        if len(self._waiting) >= MOST_WAITERS:
            raise NoLocks(f"{MOST_WAITERS} programs wait for locks already")
        number = next(self._numbers)
        self._waiting[number] = waiting = _Waiting(request)
        thread = threading.Thread(
            target=self._wait, args=(number, waiting, handle, lock), name="lock", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            del self._waiting[number]
            raise NoLocks("no more threads can be started") from None

    def _wait(self, number: int, waiting: _Waiting, handle: Handle, lock: FileLock) -> None:
        self._library.on_interrupt(waiting.request, self._interrupted, number)
        try:
            status = self._until_granted(waiting, handle, lock)
        except BaseException as error:
            status = errno_of(error, "waiting for a lock")
        with waiting.mutex:
            if not waiting.answered:
                waiting.answered = True
                self._library.reply_error(waiting.request, status)
        del self._waiting[number]

    def _until_granted(self, waiting: _Waiting, handle: Handle, lock: FileLock) -> int:
        while not self._closed:
            with waiting.mutex:
                if waiting.interrupted.is_set():
                    break
                waiting.busy = False
            try:
                self._locks.wait(lock)
            finally:
                with waiting.mutex:
                    waiting.busy = True
            if waiting.interrupted.is_set():
                break
            try:
                self._set(waiting, handle, lock)
                return 0
            except WouldBlock:
                continue
        return errno.EINTR

    def _set(self, waiting: _Waiting, handle: Handle, lock: FileLock) -> None:
        """Ask for a lock that may be free by now; servers that are away are waited for until a signal."""
        is_asked = self._patience.asked(waiting.interrupted.is_set) if self._patience.waits else nullcontext()
        with is_asked:
            self._locks.set(handle, lock)

    def _interrupt(self, _request: int, number: int) -> None:
        """Called by libfuse in any thread, also from within `on_interrupt`."""
        waiting = self._waiting.get(number)
        if waiting is None:
            return
        with waiting.mutex:
            waiting.interrupted.set()
            if not waiting.busy and not waiting.answered:
                waiting.answered = True
                self._library.reply_error(waiting.request, errno.EINTR)


def signed(owner: int) -> int:
    """Return libfuse's unsigned lock owner as the signed number that crosses the wire."""
    return owner - 2**64 if owner >= 2**63 else owner


def record_lock(ino: int, info: Any, range_: Any) -> FileLock:
    """Return the lock, or the range to unlock, of a request for record locks."""
    last = LAST if range_.l_len == 0 else range_.l_start + range_.l_len - 1
    exclusive = range_.l_type == fcntl.F_WRLCK
    return FileLock(ino, False, signed(info.lock_owner), range_.l_start, last, exclusive, range_.l_pid)


def lock_range(found: LockHolder | None) -> LockRange:
    """Return what F_GETLK tells of the lock that stands in the way, if one does."""
    if found is None:
        return LockRange(l_type=fcntl.F_UNLCK)
    lock = found.lock
    length = 0 if lock.last == LAST else lock.last - lock.start + 1
    kind = fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK
    return LockRange(kind, 0, lock.start, length, lock.pid)
