"""Answers by which the kernel keeps something for a while, and that came too late for it.

A process that is stopped between the look at its clock and the answer would have the kernel keep what is not
certain any more. The kernel is told in a thread for that alone: it waits then for requests that it has sent,
so that no thread that answers some may wait for it, nor for the one that drops pages.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Self

from fusefs.keeping import Keeping
from fusefs.operations.structures import Library

log = logging.getLogger(__name__)

END_SECONDS = 1.0
"""At the end of the mount the kernel may wait for requests that nobody answers any more."""

Told = tuple[int, bytes, int]
"""A directory (0: none), a name in it, and an inode (0: none)."""


class LateAnswers:
    """Has the kernel forget what it was told too late, while this is entered.

    Attributes:
        session: libfuse's, once there is one.
    """

    def __init__(self, library: Library, keeping: Keeping) -> None:
        self._library, self._keeping = library, keeping
        self.session: int | None = None
        self._queue: queue.SimpleQueue[Told | None] = queue.SimpleQueue()
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

    def _run(self) -> None:
        while (told := self._queue.get()) is not None:
            try:
                self._forget(*told)
            except Exception:
                log.exception("the kernel could not be told what to forget")

    def _forget(self, parent: int, name: bytes, ino: int) -> None:
        if parent:
            self._library.drop_entry(self.session, parent, name, len(name))
        if ino:
            self._library.drop_pages(self.session, ino, -1, 0)
