"""Requests that wait for a lock: what ends the wait. libfuse and the locks are fakes."""

from __future__ import annotations

import errno
import threading
from typing import Any, cast

from fusefs.handles import Handle
from fusefs.inodes import Inode
from fusefs.operations.locking import Waiters
from fusefs.patience import Patience
from tests.support import wait_until
from wire.errors import Unavailable
from wire.locks import LAST
from wire.messages import FileLock

REQUEST = 7


class Library:
    """Has one request interrupted when told so, and notes what is answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, int]] = []
        self.interrupt = threading.Event()

    def on_interrupt(self, request: int, callback: Any, number: int) -> None:
        def call() -> None:
            assert self.interrupt.wait(10)
            callback(request, number)

        threading.Thread(target=call, daemon=True).start()

    def reply_error(self, request: int, number: int) -> None:
        self.answers.append((request, number))


class Locks:
    """A lock that is free; whoever asks for it finds the servers away."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.is_asking = threading.Event()

    def wait(self, lock: FileLock) -> None:
        pass

    def set(self, handle: Handle, lock: FileLock) -> None:
        self._patience.persist(self._ask)

    def _ask(self) -> None:
        self.is_asking.set()
        raise Unavailable("away")


def test_a_signal_ends_the_wait_for_servers_that_are_asked_for_a_lock() -> None:
    patience, library = Patience("wait"), Library()
    locks = Locks(patience)
    with Waiters(cast(Any, library), cast(Any, locks), patience) as waiters:
        waiters.begin(REQUEST, Handle(Inode(5), 0), FileLock(5, False, 1, 0, LAST, True, 1))
        assert locks.is_asking.wait(10)
        library.interrupt.set()
        wait_until(lambda: library.answers == [(REQUEST, errno.EINTR)], 5, "it is interrupted")
    patience.end()
