"""What the kernel keeps and is to forget: answers that came too late, names that lead elsewhere.

A process that is stopped between the look at its clock and the answer would have the kernel keep what is not
certain any more. The kernel is told in a thread for that alone: it waits then for requests that it has sent,
so that no thread that answers some may wait for it without an end, nor may the one that drops pages.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Self

from fusefs.keeping import Keeping
from fusefs.operations.structures import Library

log = logging.getLogger(__name__)

END_SECONDS = 1.0
"""At the end of the mount the kernel may wait for requests that nobody answers any more."""

Told = tuple[int, bytes, int]
"""A directory (0: none), a name in it, and an inode (0: none)."""
Forgotten = Callable[[], object]
"""Is called when the kernel has forgotten what it was told to."""


class LateAnswers:
    """Has the kernel forget what it was told too late, while this is entered.

    Attributes:
        session: libfuse's, once there is one.
    """

    def __init__(self, library: Library, keeping: Keeping) -> None:
        self._library, self._keeping = library, keeping
        self.session: int | None = None
        self._queue: queue.SimpleQueue[Told | Forgotten | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="late", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join(END_SECONDS)

    def check(self, seconds: float, *told: Told) -> None:
        """Have the kernel forget what it was just told to keep, if this process was stopped meanwhile."""
        if seconds and not self._keeping.covers(seconds):
            for each in told:
                self._queue.put(each)

    def forget_name(self, parent: int, name: bytes) -> threading.Event:
        """Have the kernel forget a name; return what is set when it has: that may take as long as a call."""
        forgotten = threading.Event()
        self._queue.put((parent, name, 0))
        self._queue.put(forgotten.set)
        return forgotten

    def _run(self) -> None:
        while (told := self._queue.get()) is not None:
            try:
                self._forget(*told) if isinstance(told, tuple) else told()
            except Exception:
                log.exception("the kernel could not be told what to forget")

    def _forget(self, parent: int, name: bytes, ino: int) -> None:
        if parent:
            self._library.drop_entry(self.session, parent, name, len(name))
        if ino:
            self._library.drop_pages(self.session, ino, -1, 0)
