"""Takes in what the mount that is alone has changed without a call, before anything else is read or changed.

The mount writes it into a ring (wire.ring), which outlives any process, and has answered its program
by then. So whatever this server answers comes after all that is in the ring: `Store` has it taken in first.
Only one ring is open at a time: that of the session which counts as alone, from its grant on until another
session may begin, also over restarts of this server. What is written later is never carried out. Decides
nothing about names. In the event loop's thread only. See docs/decisions/0031-changes-without-a-call.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from metaserver.store import Store
from wire.errors import InternalError, NoSpace, QuorumfsError
from wire.ring import RING_BYTES, SLOT_BYTES, SLOTS, Change, Entry, slot_offset, unpack_entry
from wire.ring_file import RingFile, own_files
from wire.ring_head import (
    BOOT_FILE,
    CHANGES,
    HEAD_READ_BYTES,
    SHARED_MEMORY,
    TERM_NUMBERS,
    Head,
    boot_in,
    prefix,
    unpack_head,
)

LOOK_SECONDS = 0.005
"""While a mount changes names, its ring is looked into so often, though nobody asks for anything."""
ACTIVE_SECONDS = 0.3
"""So long after the last change it is."""

logger = logging.getLogger("metaserver")


class Work(Protocol):
    """What is done with the changes that were told."""

    def new_files_ahead(self) -> int:
        """Return how many new files there is certainly room for."""
        ...

    def carry_out(self, session: int, change: Change) -> None:
        """Carry one change out, within a transaction; QuorumfsError: it cannot be."""
        ...

    def carried_out(self, session: int, changes: list[Change]) -> None:
        """Do what is to be done after the transaction."""
        ...


class Rings:
    """The rings of one metadata server.

    Args:
        store: the database that is changed.
        work: carries the changes out.
    """

    def __init__(self, store: Store, work: Work) -> None:
        self._store, self._work = store, work
        self._prefix = prefix(store.path.parent, CHANGES)
        self._boot = boot_in(BOOT_FILE)
        self._ring: RingFile | None = None
        self._is_fresh = False
        """Whether the ring's term is of this life of the server."""
        self._was_refused = False
        self._taking = False
        self._active_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._adopt()
        store.bring_in = self.take_in

    def _adopt(self) -> None:
        """Go on with the ring that an earlier life of this server had open; remove what else is left.

        Raises:
            OSError, InternalError: one cannot be read, or the database: what was changed is not known.
        """
        for path in own_files(SHARED_MEMORY, self._prefix):
            content = path.read_bytes()
            head = unpack_head(content[:HEAD_READ_BYTES])
            if head is not None and self._is_of_this(path, head):
                self._ring = RingFile(path, head, RING_BYTES)
                self._ring.say(self._taken(head.session), 0)
            elif head is not None and len(content) == RING_BYTES:
                RingFile(path, head, RING_BYTES).end()  # a mount may have it open still
            else:
                path.unlink()

    def _is_of_this(self, path: Path, head: Head) -> bool:
        known = head.session in self._store.sessions
        taken = self._taken(head.session) if known else None
        return self._ring is None and path == self._path(head.session) and goes_on(head, self._boot, taken)

    def _taken(self, session: int) -> int:
        return self._store.read(self._find_taken, session)

    def _find_taken(self, session: int) -> int:
        row = self._store.execute("SELECT taken FROM rings WHERE session = ?", (session,)).fetchone()
        return 0 if row is None else int(row[0])

    def _path(self, session: int) -> Path:
        return SHARED_MEMORY / f"{self._prefix}{session}"

    def place(self, session: int) -> bytes:
        """Return where a session's ring will be, b"" if there will be none."""
        return os.fsencode(self._path(session)) if self._boot else b""

    def begin(self, session: int) -> int:
        """Return the term in which a session that counts as alone may use its ring; 0 if it may not."""
        if not self._boot:
            return 0
        if self._ring is None or not self._is_fresh or not self._is_of(self._ring, session):
            self.end()
            self._begin(session)
        if self._ring is not None:
            self._ring.say(self._ring.head.taken, self._room_after(self._ring.head.taken))
        return 0 if self._ring is None else self._ring.head.term

    @staticmethod
    def _is_of(ring: RingFile, session: int) -> bool:
        return ring.head.session == session and ring.has_name

    def _begin(self, session: int) -> None:
        path = self._path(session)
        try:
            head = Head(self._boot, session, 1 + secrets.randbelow(TERM_NUMBERS), self._taken(session), 0)
            ring = RingFile(path, head, RING_BYTES)
            ring.write(head)
        except (OSError, QuorumfsError) as error:
            if not self._was_refused:
                logger.warning("%s cannot be used, each change takes a call: %s", path, error)
            self._was_refused = True
            return
        self._ring, self._is_fresh, self._was_refused = ring, True, False

    def end(self) -> None:
        """Carry out what is in the ring, and nothing that comes later: others may change names now."""
        if self._ring is None:
            return
        self.take_in()
        self._ring.end()
        self._ring = None

    def session_ended(self, session: int) -> None:
        """Remove the ring of a session that has ended; what was in it was taken in before."""
        if self._ring is not None and self._ring.head.session == session:
            self._ring.end()
            self._ring = None

    def expect(self, session: int) -> None:
        """A session has changed names by a call: more may be in its ring soon."""
        if self._ring is not None and self._ring.head.session == session:
            self._stay_active()

    def take_in(self) -> None:
        """Carry out all that is in the ring, in one transaction if the disk has room for it.

        Raises:
            QuorumfsError: it cannot be; then nothing may be answered either.
        """
        ring = self._ring
        if ring is None or self._taking or _first_of(ring) is None:
            return
        self._taking = True
        try:
            self._take_in_parts(ring, _waiting_in(ring))
        finally:
            self._taking = False
        self._stay_active()

    def _take_in_parts(self, ring: RingFile, entries: list[Entry]) -> None:
        session, most = ring.head.session, len(entries)
        while entries:
            part = entries[:most]
            changes = [entry.change for entry in part]
            try:
                self._store.change(self._carry_out, session, part[-1].number, changes)
            except Exception as error:
                if most > 1 and not _is_of_the_disk(error):
                    most = (
                        1  # the reserve has room for what each writes, and one that is wrong spoils no other
                    )
                    continue
                if isinstance(error, NoSpace) or _is_of_the_disk(error):
                    raise
                logger.error("a change that was answered cannot be carried out: %s: %r", changes, error)
                changes = []
                self._store.change(self._carry_out, session, part[-1].number, changes)
            self._work.carried_out(session, changes)
            ring.say(part[-1].number, self._room_after(part[-1].number))
            entries = entries[most:]

    def _carry_out(self, session: int, number: int, changes: list[Change]) -> None:
        for change in changes:
            self._work.carry_out(session, change)
        self._store.execute("REPLACE INTO rings VALUES (?, ?)", (session, number))

    def _room_after(self, taken: int) -> int:
        """Return up to which number there is room for new files, when so many changes are taken in."""
        ahead = self._work.new_files_ahead()
        return taken + ahead if ahead else 0

    def are_taken_in(self) -> bool:
        """Carry out all that is in the ring; return whether that is possible: else there must be no more."""
        try:
            self.take_in()
        except QuorumfsError as error:
            logger.error("what a mount has changed is left for later: %s", error)
            return False
        return True

    def _stay_active(self) -> None:
        self._active_until = time.monotonic() + ACTIVE_SECONDS
        if self._timer is None:
            self._look_later()

    def _look_later(self) -> None:
        try:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        except RuntimeError:
            self._timer = None  # no loop runs: whoever asks for something will look

    def _look(self) -> None:
        self._timer = None
        if self.are_taken_in() and self._timer is None and time.monotonic() < self._active_until:
            self._look_later()

    def close(self) -> None:
        """Leave the ring to the next life: the store is about to be closed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ring is not None:
            self._ring.close()
            self._ring = None


def goes_on(head: Head, boot: bytes, taken: int | None) -> bool:
    """Tell whether a server that starts takes a ring in: not after a power loss, nor with an older database.

    Args:
        head: the ring's.
        boot: what names this start of the machine.
        taken: which change of the ring's session the database has had last; None if it has no such session.
    """
    is_of_this_boot = boot != b"" and head.boot == boot
    return head.term != 0 and is_of_this_boot and taken is not None and head.taken <= taken


def left_changes(directory: Path, taken_of: Callable[[int], int | None]) -> int:
    """Return how many changes a stopped server has not taken in yet, and will when it starts.

    Args:
        directory: the server's.
        taken_of: tells which change of a session its database has had last; None of one that it has not.

    Raises:
        OSError: a ring cannot be read.
    """
    begin = prefix(directory, CHANGES)
    for path in own_files(SHARED_MEMORY, begin):
        content = path.read_bytes()
        head = unpack_head(content[:HEAD_READ_BYTES])
        if head is None or path.name != f"{begin}{head.session}":
            continue
        taken = taken_of(head.session)
        if taken is not None and goes_on(head, boot_in(BOOT_FILE), taken):
            return _told_after(taken, content, head.term)
    return 0


def _told_after(taken: int, ring: bytes, term: int) -> int:
    """Return how many changes follow one in a ring."""
    for count in range(SLOTS):
        number = taken + 1 + count
        at = slot_offset(number)
        if unpack_entry(ring[at : at + SLOT_BYTES], number, term) is None:
            return count
    return SLOTS


def _is_of_the_disk(error: Exception) -> bool:
    """Tell whether another time, or a repair, may have the same change carried out."""
    return isinstance(error, InternalError) and not isinstance(error.__cause__, sqlite3.IntegrityError)


def _first_of(ring: RingFile) -> Entry | None:
    """Return the change that is to be taken in next, if there is one. Raises InternalError."""
    return _entry_at(ring, ring.head.taken + 1)


def _waiting_in(ring: RingFile) -> list[Entry]:
    """Return all changes that are to be taken in, in their order. Raises InternalError."""
    found: list[Entry] = []
    while len(found) < SLOTS and (entry := _entry_at(ring, ring.head.taken + len(found) + 1)) is not None:
        found.append(entry)
    return found


def _entry_at(ring: RingFile, number: int) -> Entry | None:
    return unpack_entry(ring.read(SLOT_BYTES, slot_offset(number)), number, ring.head.term)
