"""Takes in what the mount that is alone has removed without a call, before anything else is read or changed.

The mount writes it into a ring (wire.removal_ring), which outlives any process, and has answered its program
by then. So whatever this server answers comes after all that is in the ring: `Store` has it taken in first.
Only one ring is open at a time: that of the session which counts as alone, from its grant on until another
session may begin, also over restarts of this server. What is written later is never carried out. Decides
nothing about names. In the event loop's thread only. See docs/decisions/0031-removals-without-a-call.md.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from metaserver.store import Store
from wire.errors import InternalError, NoSpace, QuorumfsError
from wire.removal_ring import (
    HEAD_READ_BYTES,
    RING_BYTES,
    SLOT_BYTES,
    SLOTS,
    Head,
    Removal,
    pack_head,
    slot_offset,
    unpack_head,
    unpack_removal,
)

SHARED_MEMORY = Path("/dev/shm")
"""Where rings are: see shm_overview(7)."""
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
"""Names the machine's start; see random(4)."""
LOOK_SECONDS = 0.005
"""While a mount removes names, its ring is looked into so often, though nobody asks for anything."""
ACTIVE_SECONDS = 0.3
"""So long after the last removal it is."""
TERM_NUMBERS = 2**62

logger = logging.getLogger("metaserver")

RemoveName = Callable[[int, bytes, int, int], bool]
"""Removes the name of an inode: (directory, name, inode, when in ns); False if it is not that inode's."""


class _Ring:
    """The open file of one session, and its head as it was written last."""

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head = path, head
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(self._descriptor).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is another user's", os.fspath(path))
            os.posix_fallocate(self._descriptor, 0, RING_BYTES)  # no write of the mount lacks room
        except OSError:
            os.close(self._descriptor)
            raise

    def write(self, head: Head) -> None:
        self.head = head
        os.pwrite(self._descriptor, pack_head(head), 0)

    def say_taken(self, number: int) -> None:
        """Have the mount know how far removals are carried out: if it does not, they take calls some day."""
        try:
            self.write(self.head._replace(taken=number))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error)

    def first(self) -> Removal | None:
        """Return the removal that is to be taken in next, if there is one. Raises InternalError."""
        return self._at(self.head.taken + 1)

    def waiting(self) -> list[Removal]:
        """Return all removals that are to be taken in, in their order. Raises InternalError."""
        found: list[Removal] = []
        while len(found) < SLOTS and (removal := self._at(self.head.taken + len(found) + 1)) is not None:
            found.append(removal)
        return found

    def _at(self, number: int) -> Removal | None:
        try:
            slot = os.pread(self._descriptor, SLOT_BYTES, slot_offset(number))
        except OSError as error:
            raise InternalError(
                f"{self.path} cannot be read, nor what is removed be known: {error}"
            ) from None
        return unpack_removal(slot, number, self.head.term)

    def end(self) -> None:
        """Have nothing written any more, and remove the file.

        If it stays it is no harm: no later grant tells its term, and the next start removes it.
        """
        with suppress(OSError):
            self.write(self.head._replace(term=0))
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._descriptor)


class Removals:
    """The rings of one metadata server.

    Args:
        store: the database in which names are removed.
        remove_name: carries one removal out, within a transaction.
        remove_soon: called after names were removed.
    """

    def __init__(self, store: Store, remove_name: RemoveName, remove_soon: Callable[[], None]) -> None:
        self._store, self._remove_name, self._remove_soon = store, remove_name, remove_soon
        self._prefix = prefix(store.path.parent)
        self._boot = _boot()
        self._ring: _Ring | None = None
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
            OSError, InternalError: one cannot be read, or the database: what was removed is not known.
        """
        for path in sorted(SHARED_MEMORY.glob(f"{self._prefix}*")):
            content = path.read_bytes()
            head = unpack_head(content[:HEAD_READ_BYTES])
            if head is not None and head.term and self._is_of_this(path, head):
                self._ring = _Ring(path, head)
                self._ring.say_taken(self._taken(head.session))
            elif head is not None and len(content) == RING_BYTES:
                _Ring(path, head).end()  # a mount may have it open still
            else:
                path.unlink()

    def _is_of_this(self, path: Path, head: Head) -> bool:
        """Tell whether a ring goes on: not after a power loss, nor if the database is an older one."""
        return (
            self._boot != b""
            and head.boot == self._boot
            and path == self._path(head.session)
            and head.session in self._store.sessions
            and head.taken <= self._taken(head.session)
            and self._ring is None
        )

    def _taken(self, session: int) -> int:
        return self._store.read(self._find_taken, session)

    def _find_taken(self, session: int) -> int:
        row = self._store.execute("SELECT taken FROM removals WHERE session = ?", (session,)).fetchone()
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
        if self._ring is None or not self._is_fresh or self._ring.head.session != session:
            self.end()
            self._begin(session)
        return 0 if self._ring is None else self._ring.head.term

    def _begin(self, session: int) -> None:
        path = self._path(session)
        try:
            head = Head(self._boot, session, 1 + secrets.randbelow(TERM_NUMBERS), self._taken(session))
            ring = _Ring(path, head)
            ring.write(head)
        except (OSError, QuorumfsError) as error:
            if not self._was_refused:
                logger.warning("%s cannot be used, each removal takes a call: %s", path, error)
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
        """A session has removed a name by a call: more may be in its ring soon."""
        if self._ring is not None and self._ring.head.session == session:
            self._stay_active()

    def take_in(self) -> None:
        """Carry out all that is in the ring, in one transaction if the disk has room for it.

        Raises:
            QuorumfsError: it cannot be; then nothing may be answered either.
        """
        ring = self._ring
        if ring is None or self._taking or ring.first() is None:
            return
        self._taking = True
        try:
            self._take_in_parts(ring, ring.waiting())
        finally:
            self._taking = False
        self._stay_active()
        self._remove_soon()

    def _take_in_parts(self, ring: _Ring, removals: list[Removal]) -> None:
        most = len(removals)
        while removals:
            part = removals[:most]
            try:
                self._store.change(self._carry_out, ring.head.session, part)
            except NoSpace:
                if most == 1:
                    raise
                most = 1  # as the reserve has room for what each writes into the log
                continue
            ring.say_taken(part[-1].number)
            removals = removals[most:]

    def are_taken_in(self) -> bool:
        """Carry out all that is in the ring; return whether that is possible: else there must be no more."""
        try:
            self.take_in()
        except QuorumfsError as error:
            logger.error("what a mount has removed is left for later: %s", error)
            return False
        return True

    def _carry_out(self, session: int, removals: list[Removal]) -> None:
        for removal in removals:
            if not self._remove_name(removal.parent, removal.name, removal.ino, removal.removed_ns):
                logger.error("a removal that was answered cannot be carried out: %s", removal)
        self._store.execute("REPLACE INTO removals VALUES (?, ?)", (session, removals[-1].number))

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


def prefix(directory: Path) -> str:
    """Return what the names of the rings of one metadata server's directory begin with.

    A copy of the directory is another one: what is in the rings is done once.
    """
    found = directory.stat()
    return f"quorumfs-removals-{found.st_dev:x}-{found.st_ino:x}-"


def _boot() -> bytes:
    """Return what names this start of the machine; b"" where nothing does."""
    try:
        boot = BOOT_FILE.read_text().strip().encode()
    except OSError:
        return b""
    return boot if len(boot) == 36 else b""
