"""Small files fetched ahead: the neighbours of those that a program opens in the order of a listing.

Their bytes were voted on by all replicas, several files by one call, for the block that a file had then.
Whoever opens a file asks the server for its map all the same, unless this mount is alone and has not changed
it; only if that names the very block are the bytes used (promise P8). What nobody opens is dropped soon.
Bounded; safe in any thread; two of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from fusefs.cache import Asked
from fusefs.neighbours import Listing
from fusefs.ports import NamespacePort
from wire.errors import QuorumfsError
from wire.messages import BlockPart, BlockRecord, Entry, FileMap, Opened

log = logging.getLogger(__name__)

KEPT_SECONDS = 1.0
"""What was fetched ahead is dropped if it was not opened within so long."""
WAIT_SECONDS = 0.25
"""An open waits so long for bytes that are on their way."""
MOST_BYTES = 4 * 1024 * 1024
MOST_LISTINGS = 8
MOST_LISTED = 262_144
"""No longer listing is followed, nor so many files in all."""
FETCHES = 2


class Ready(NamedTuple):
    """A file as it was when it was `asked` for, its only block, and that block's bytes."""

    file: Opened
    record: BlockRecord
    part: BlockPart
    asked: Asked
    until: float


def only_block(file: FileMap) -> BlockRecord | None:
    """Return the block of a file that has just one extent."""
    if not file.complete or len(file.extents) != 1:
        return None
    extent = file.extents[0]
    return BlockRecord(extent.block, extent.block_length, extent.digest)


class FilesAhead:
    """The small files that are likely to be opened next.

    Args:
        namespace: reads several files by one call.
        asking: returns a token to be taken before the server is asked.
        most_bytes: the most bytes kept of files that were not opened yet.
    """

    def __init__(self, namespace: NamespacePort, asking: Callable[[], Asked], most_bytes: int) -> None:
        self._namespace, self._asking = namespace, asking
        self._most_bytes = min(most_bytes, MOST_BYTES)
        self._lock = threading.Lock()
        self._listings: OrderedDict[int, Listing] = OrderedDict()
        self._ready: OrderedDict[int, Ready] = OrderedDict()
        self._ready_bytes = 0
        self._coming: dict[int, Future[None]] = {}
        self._forgotten = 0
        """How often everything was dropped."""
        self._pool = ThreadPoolExecutor(FETCHES, "files-ahead")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def listed(self, directory: int, entries: Sequence[Entry]) -> None:
        """Take over what a directory was found to hold."""
        if len(entries) > MOST_LISTED:
            return
        listing = Listing(entries, KEPT_SECONDS)
        with self._lock:
            self._listings.pop(directory, None)
            self._listings[directory] = listing
            while len(self._listings) > MOST_LISTINGS or sum(map(len, self._listings.values())) > MOST_LISTED:
                self._listings.popitem(last=False)

    def opened(self, ino: int, fetch: bool) -> bool:
        """Note that a file is opened to be read; with `fetch` begin to fetch those that will follow.

        Returns:
            Whether its own bytes are here or on their way: then `take` must be called.
        """
        with self._lock:
            self._drop_old()
            is_here = ino in self._ready or ino in self._coming
            listing = next((each for each in reversed(self._listings.values()) if ino in each), None)
            if listing is None:
                return is_here
            most_bytes = self._most_bytes // 2 if fetch else 0
            wanted = listing.opened(ino, time.monotonic(), is_here, most_bytes)
            inodes = [each for each in wanted if each not in self._ready and each not in self._coming]
            if inodes:
                future = self._pool.submit(self._fetch, inodes, self._forgotten)
                self._coming.update(dict.fromkeys(inodes, future))
        return is_here

    def _fetch(self, inodes: list[int], forgotten: int) -> None:
        asked = self._asking()
        try:
            files = self._namespace.read_small_files(inodes)
        except QuorumfsError as error:
            log.debug("%d files were not fetched ahead: %s", len(inodes), error)
            files = []
        except Exception:
            log.exception("files could not be fetched ahead")
            files = []
        until = time.monotonic() + KEPT_SECONDS
        with self._lock:
            if forgotten != self._forgotten:
                return
            for ino, file in zip(inodes, files, strict=False):
                record = None if file is None else only_block(file.map)
                if file is not None and file.part is not None and record is not None:
                    self._drop(ino)
                    self._ready[ino] = Ready(file, record, file.part, asked, until)
                    self._ready_bytes += len(file.part.data)
            for ino in inodes:
                self._coming.pop(ino, None)
            while self._ready_bytes > self._most_bytes:
                self._drop(next(iter(self._ready)))

    def take(self, ino: int) -> Ready | None:
        """Return a file that is being opened, if it has come; it is not kept any more."""
        future = self._coming.get(ino)
        if future is not None:
            try:
                future.result(WAIT_SECONDS)
            except TimeoutError:
                return None
        with self._lock:
            return self._drop(ino)

    def _drop(self, ino: int) -> Ready | None:
        ready = self._ready.pop(ino, None)
        if ready is not None:
            self._ready_bytes -= len(ready.part.data)
        return ready

    def drop_old(self) -> None:
        """Drop what nobody has opened in time."""
        with self._lock:
            self._drop_old()

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._ready and next(iter(self._ready.values())).until < now:
            self._drop(next(iter(self._ready)))

    def forget(self) -> None:
        """Drop everything, also what is on its way, so that the next read of each file is a vote."""
        with self._lock:
            self._forgotten += 1
            self._ready.clear()
            self._ready_bytes = 0
            self._coming.clear()
            self._listings.clear()
