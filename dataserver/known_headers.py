"""Headers of long records as they were when they were last read or written. Bounded; any thread.

A part of a block is voted on together with the recorded digests of the pieces that were not asked for. Those
are what a record says, not its bytes: so they may come from memory, and a part costs one read of the disk
instead of two. Votes on whole blocks (a scrub's, a repair's) read the header from the disk every time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from dataserver.index import Entry
from dataserver.record import Header

MOST_HEADERS = 8192
"""Of so many blocks, the newest: 8 GiB if they are full, in some 20 MiB of memory."""


class KnownHeaders:
    """Maps where a record lies to its header."""

    def __init__(self, most: int = MOST_HEADERS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._headers: OrderedDict[Entry, Header] = OrderedDict()

    def get(self, entry: Entry) -> Header | None:
        with self._lock:
            header = self._headers.get(entry)
            if header is not None:
                self._headers.move_to_end(entry)
            return header

    def note(self, entry: Entry, header: Header) -> None:
        """Keep a header; those that were not asked for longest go."""
        with self._lock:
            self._headers[entry] = header
            self._headers.move_to_end(entry)
            while len(self._headers) > self._most:
                self._headers.popitem(last=False)

    def forget(self, entry: Entry) -> None:
        with self._lock:
            self._headers.pop(entry, None)
