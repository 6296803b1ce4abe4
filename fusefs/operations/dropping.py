"""Dropping the kernel's pages of open files that changed elsewhere, before it learns their new attributes.

The kernel fills its last page of a file with zeros behind the end, and shows them as soon as it is told a
larger size. So answers with attributes of an inode whose pages are to be dropped are sent after the drop, in
the order of the queue. The kernel then ignores the size in them, since a drop is news to it, and asks again
when a read reaches its old end: so an open or a lock is answered after the drops as well, lest the first read
under it be the one that is cut short.

Drops have a thread of their own: a drop waits for pages that requests have locked, and those that answer
requests must not all wait for each other.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

log = logging.getLogger(__name__)


class PageDrops:
    """What is to be dropped, and the answers that wait for it."""

    def __init__(self) -> None:
        self._drop: Callable[[int], object] = lambda _: None
        self._drop_attributes: Callable[[int], object] = lambda _: None
        self._queue: queue.SimpleQueue[int | Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._run, name="dropper", daemon=True)

    def drop_with(self, drop: Callable[[int], object], drop_attributes: Callable[[int], object]) -> None:
        """Call these with an inode's number to have the kernel forget its pages, or its attributes only."""
        self._drop, self._drop_attributes = drop, drop_attributes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def drop_soon(self, ino: int) -> None:
        """Drop an inode's pages in the thread for it. For any thread, also while the kernel waits for it."""
        with self._lock:
            self._waiting[ino] += 1
            self._queue.put(ino)

    def drop_attributes(self, ino: int) -> None:
        """Drop an inode's attributes only. For any thread: the kernel waits for nothing then."""
        self._drop_attributes(ino)

    def drop_now(self, ino: int) -> None:
        """Drop an inode's pages before this returns. Not while the kernel may have one of them locked."""
        self.await_drops(ino)
        self._drop(ino)

    def await_drops(self, ino: int) -> None:
        """Return when no pages of the inode are waiting to be dropped; under the same condition."""
        done = threading.Event()
        self.after(ino, done.set)
        done.wait()

    def after(self, ino: int, answer: Callable[[], object]) -> None:
        """Call `answer` when no pages of the inode are waiting to be dropped: mostly at once."""
        if ino in self._waiting:
            with self._lock:
                if ino in self._waiting:
                    self._queue.put(answer)
                    return
        answer()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._drop(item) if isinstance(item, int) else item()
            except Exception:
                log.exception("dropping pages, or an answer after it, failed")
            if not isinstance(item, int):
                continue
            with self._lock:
                self._waiting[item] -= 1
                if not self._waiting[item]:
                    del self._waiting[item]
