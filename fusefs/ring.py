"""This mount's end of the ring of changes: names removed and files made without a call, while it is alone.

What is in the ring has happened: the metadata server carries it out before it answers anybody, whoever is
killed meanwhile (wire.ring, metaserver.rings). So a change is answered once it is written, if the grant lasts
then still; if it does not, only the server can tell whether it took it in. Decides nothing about names and
files. Safe in any thread. See docs/decisions/0031-changes-without-a-call.md.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO

from fusefs.grant import Grant
from wire.ring import SLOTS, Change, Entry, NewFile, pack_entry, slot_offset
from wire.ring_head import HEAD_READ_BYTES, Head, unpack_head

LOCK_SECONDS = 0.1
"""Who waits longer for others has the change made by a call."""
RUN_SECONDS = 0.25
"""A change so soon after another one is of the same run."""


class ChangeRing:
    """The ring of one session, if the metadata server has one for it and its file can be reached from here.

    Args:
        grant: whether the session counts as alone.
    """

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._lock = threading.Lock()
        self._place, self._session = b"", 0
        self._term = 0
        self._file: FileIO | None = None
        self._told = (0, 0)
        """The term of the last change that was told, and its number: what waits must not be written over."""
        self._doubtful_term = 0
        """One in which nobody knows what came of a change: nothing more is told in it."""
        self._changing = 0
        """So many calls that change names are being made."""
        self._asking = False
        """Whether the server is asked about a change; none is told it meanwhile."""
        self._last = -RUN_SECONDS

    def move(self, place: bytes, session: int) -> None:
        """The ring of a new session will be there."""
        with self._lock:
            self._place, self._session = place, session
            self._told = 0, 0
            self._leave()

    def expect(self, term: int) -> None:
        """Note the term that came with the newest grant; 0: there is no ring."""
        with self._lock:
            if term == self._term and (self._file is not None or not term):
                return
            self._leave()
            if self._place and term not in (0, self._doubtful_term):
                self._enter(term)

    def _leave(self) -> None:
        if self._file is not None:
            self._file.close()
        self._term, self._file = 0, None

    def _enter(self, term: int) -> None:
        """Open the ring; not that of another machine, user or life, which has another term."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._file = FileIO(os.open(self._place, flags), "r+b")
        except OSError:
            return
        found = os.fstat(self._file.fileno())
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.geteuid())
        head = _head(self._file.fileno()) if is_ours else None
        if head is None or (head.session, head.term) != (self._session, term):
            self._leave()
            return
        last_term, number = self._told
        self._term, self._told = term, (term, max(head.taken, number) if term == last_term else head.taken)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within, names are changed by calls: which of two changes comes first must not be in doubt."""
        with self._lock:
            self._changing += 1
        try:
            yield
        finally:
            with self._lock:
                self._changing -= 1

    def is_run(self) -> bool:
        """Tell whether a change that could be told now follows another one soon, and there is a ring.

        The first of a run takes a call, which also has the metadata server look for more.
        """
        now = time.monotonic()
        is_run, self._last = now < self._last + RUN_SECONDS, now
        return is_run and self._file is not None

    def tell(self, change: Change, ask: Callable[[], object]) -> bool:
        """Tell a change that the server cannot refuse; return False if it was not told, and takes a call.

        Args:
            change: what has changed.
            ask: asks the metadata server anything, which it answers after all that is in the ring.

        Raises:
            QuorumfsError: `ask` failed: nobody knows whether it is carried out.
        """
        if self._file is None or not self._lock.acquire(timeout=LOCK_SECONDS):
            return False
        try:
            era = self._grant.era()
            if self._file is None or not era or self._changing or self._asking or not self._has_room(change):
                return False
            entry = Entry(self._told[1] + 1, self._term, change)
            if not self._write(entry):
                return False
            if self._grant.era() == era and os.fstat(self._file.fileno()).st_nlink:
                self._told = entry.term, entry.number
                return True
            self._asking, descriptor = True, os.dup(self._file.fileno())
        finally:
            self._lock.release()
        is_taken = False
        try:
            ask()
            head = _head(descriptor)
            is_taken = head is not None and head.taken >= entry.number
        finally:
            os.close(descriptor)
            with self._lock:
                self._asking = False
                if not is_taken:
                    self._doubt(entry.term)
                elif self._term == entry.term:
                    self._told = entry.term, entry.number
        return is_taken

    def _doubt(self, term: int) -> None:
        """Never tell anything in a term again: the slot may have been read, or be read yet."""
        self._doubtful_term = term
        if self._term == term:
            self._leave()

    def _has_room(self, change: Change) -> bool:
        assert self._file is not None
        head = _head(self._file.fileno())
        if head is None or head.term != self._term or self._told[1] - head.taken >= SLOTS:
            return False
        return not isinstance(change, NewFile) or self._told[1] < head.room_until

    def _write(self, entry: Entry) -> bool:
        assert self._file is not None
        packed = pack_entry(entry)
        try:
            if os.pwrite(self._file.fileno(), packed, slot_offset(entry.number)) == len(packed):
                return True
        except OSError:
            pass
        self._doubt(entry.term)
        return False

    def close(self) -> None:
        """Leave the ring; what is in it is the server's."""
        with self._lock:
            self._leave()


def _head(descriptor: int) -> Head | None:
    return unpack_head(os.pread(descriptor, HEAD_READ_BYTES, 0))
