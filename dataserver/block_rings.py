"""Takes in the blocks that mediators of this machine have given without a call, before anything is answered.

A mediator writes them into a ring (wire.block_ring), which outlives any process, and counts this server among
those that have them by then. So whatever this server answers comes after all that is in its rings; and it
takes in what an earlier life of it was given. A ring is ended at any time, without a word: who has
written into it looks at its head again. Decides nothing about blocks. On the event loop, or in one thread
while the loop waits. See docs/decisions/0032-puts-without-a-call.md.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from wire.block_ring import (
    MOST_BYTES,
    RECORD_BYTES,
    RING_BYTES,
    SLOTS,
    GivenBlock,
    record_offset,
    unpack_record,
)
from wire.digest import Buffer, block_digest
from wire.errors import BlockConflict, DigestMismatch, NoSpace, QuorumfsError
from wire.messages import BlockRing
from wire.ring_file import RingFile, own_files
from wire.ring_head import (
    BLOCKS,
    BOOT_FILE,
    HEAD_READ_BYTES,
    SHARED_MEMORY,
    TERM_NUMBERS,
    Head,
    boot_in,
    prefix,
    unpack_head,
)

MOST_RINGS = 2
"""One for each mediator of this machine. A further one has the place of the one least recently used."""
IN_USE_SECONDS = 5.0
"""One that was used so long ago is not taken from its mediator for another."""
IDLE_SECONDS = 60.0
"""A ring into which nothing was written for so long is ended: whose it was may be gone."""
ACTIVE_SECONDS = 0.5
"""So long after the last block more are looked for, though nobody asks for anything."""
AGAIN_SECONDS = 2.0
"""What could not be taken in is tried again after so long."""

_log = logging.getLogger(__name__)


class Store(Protocol):
    """What blocks are put into."""

    def take(self, block: bytes, digest: bytes, data: Buffer) -> None:
        """Keep a block that was promised to be kept. Raises QuorumfsError."""

    def has_room_for(self, blocks: int, length: int) -> bool:
        """Tell whether so many blocks of a length can certainly be taken."""


class BlockRings:
    """The rings of one data server.

    Args:
        directory: the server's, after which the files are named.
        store: takes the blocks.
    """

    def __init__(self, directory: Path, store: Store) -> None:
        """Go on with what earlier lives of this server were given. Raises OSError."""
        self._store = store
        self._prefix = prefix(directory, BLOCKS)
        self._boot = boot_in(BOOT_FILE)
        self._rings: list[_Ring] = []
        self._not_before = 0.0
        self._was_refused = False
        self.active_until = 0.0
        """On the monotonic clock: something may come so long without a call."""
        self._adopt()

    def _adopt(self) -> None:
        for path in own_files(SHARED_MEMORY, self._prefix):
            head = unpack_head(path.read_bytes()[:HEAD_READ_BYTES])
            if head is None or head.boot != self._boot or path.stat().st_size != RING_BYTES:
                path.unlink()
                continue
            ring = _Ring(RingFile(path, head, RING_BYTES))
            self._rings.append(ring)
        for ring in list(self._rings):
            self._end(ring)

    def open(self) -> BlockRing:
        """Make a ring for a mediator; the term is 0 if it gets none."""
        if not self._boot or not self._has_room() or time.monotonic() < self._not_before:
            return BlockRing(b"", 0)
        while len(self._rings) >= MOST_RINGS:
            oldest = min(self._rings, key=lambda ring: ring.used)
            self._take_from(oldest)
            if time.monotonic() - oldest.used < IN_USE_SECONDS or not self._end(oldest):
                return BlockRing(b"", 0)
        path = SHARED_MEMORY / f"{self._prefix}{secrets.token_hex(8)}"
        head = Head(self._boot, 0, 1 + secrets.randbelow(TERM_NUMBERS), 0, SLOTS)
        try:
            file = RingFile(path, head, RING_BYTES)
        except OSError as error:
            self._warn(path, error)
            return BlockRing(b"", 0)
        try:
            file.write(head)
        except OSError as error:
            self._warn(path, error)
            file.end()
            return BlockRing(b"", 0)
        self._rings.append(_Ring(file))
        self._stay_active()
        return BlockRing(os.fsencode(path), head.term)

    def _warn(self, path: Path, error: OSError) -> None:
        if not self._was_refused:
            _log.warning("%s cannot be used, each put takes a call: %s", path, error)
        self._was_refused = True

    def _has_room(self) -> bool:
        return self._store.has_room_for(MOST_RINGS * SLOTS, MOST_BYTES)

    def has_waiting(self) -> bool:
        """Tell whether something is to be taken in, and can be now."""
        return any(ring.has_next() for ring in self._rings) and time.monotonic() >= self._not_before

    def take_in(self) -> None:
        """Take in all that is in the rings. What cannot be is logged, and tried again later.

        Until then this server lacks those blocks, and says so.
        """
        for ring in self._rings:
            self._take_from(ring)

    def _take_from(self, ring: _Ring) -> None:
        if time.monotonic() < self._not_before:
            return
        try:
            count = ring.take_in(self._store)
        except (QuorumfsError, OSError) as error:
            level = logging.WARNING if isinstance(error, NoSpace) else logging.ERROR
            _log.log(level, "blocks that were given cannot be kept: %s; it is tried again", error)
            self._not_before = time.monotonic() + AGAIN_SECONDS
            for each in self._rings:  # what comes by the others would wait, too
                each.refuse()
            return
        if count:
            self._stay_active()
            ring.say(self._has_room())

    def expect_more(self) -> bool:
        """Note that a block was put by a call: more may come without one. Tell whether they can."""
        if self._rings:
            self._stay_active()
        return bool(self._rings)

    def _stay_active(self) -> None:
        self.active_until = time.monotonic() + ACTIVE_SECONDS

    def end_idle(self) -> None:
        """End the rings that nobody uses any more, and take in what is in others."""
        now = time.monotonic()
        for ring in list(self._rings):
            self._take_from(ring)
            if ring.is_refusing or now - ring.used > IDLE_SECONDS or not ring.has_name:
                self._end(ring)

    def close(self) -> None:
        """Take in all there is, and end all rings. What cannot be taken in is left to the next life."""
        self._not_before = 0.0
        for ring in list(self._rings):
            if not self._end(ring):
                ring.leave()
        self._rings = []

    def _end(self, ring: _Ring) -> bool:
        """End a ring; return False if something in it cannot be taken in yet."""
        ring.refuse()  # first: who writes later than this finds it so, and makes a call
        self._take_from(ring)
        if ring.has_next():
            return False
        ring.end()
        self._rings.remove(ring)
        return True


class _Ring:
    """One ring."""

    def __init__(self, file: RingFile) -> None:
        self._file = file
        self.used = time.monotonic()
        self.is_refusing = False

    @property
    def has_name(self) -> bool:
        return self._file.has_name

    def has_next(self) -> bool:
        return self._record() is not None

    def _record(self) -> GivenBlock | None:
        head = self._file.head
        number = head.taken + 1
        return unpack_record(self._file.read(RECORD_BYTES, record_offset(number)), number, head.term)

    def take_in(self, store: Store) -> int:
        """Put what is in the ring into the store; return how many blocks that were. Raises QuorumfsError."""
        count = 0
        while (given := self._record()) is not None:
            data = self._data(given)
            try:
                store.take(given.block, given.digest, data)
            except (BlockConflict, DigestMismatch) as error:
                _log.error(
                    "a block that was given cannot be kept: %s; a repair brings what was committed", error
                )
            self._file.head = self._file.head._replace(taken=given.number)
            count += 1
        if count:
            self.used = time.monotonic()
        return count

    def _data(self, given: GivenBlock) -> bytes:
        for _ in range(2):  # a processor of another kind may show the record earlier than the bytes
            data = self._file.read(given.length, record_offset(given.number) - given.length)
            if block_digest(data) == given.digest:
                break
        return data

    def say(self, has_room: bool) -> None:
        """Have the mediator know how far it may go on."""
        taken = self._file.head.taken
        may_go_on = has_room and not self.is_refusing
        self._file.say(taken, taken + SLOTS if may_go_on else 0)

    def refuse(self) -> None:
        """Count nothing as given that is written from now on; it is taken in all the same."""
        self.is_refusing = True
        self.say(False)

    def end(self) -> None:
        self._file.end()

    def leave(self) -> None:
        with suppress(OSError):
            self._file.close()


def left_blocks(directory: Path) -> int:
    """Return how many blocks a server that was killed was given, and takes in when it starts.

    Raises OSError: its rings cannot be read.
    """
    count = 0
    for path in own_files(SHARED_MEMORY, prefix(directory, BLOCKS)):
        ring = path.read_bytes()
        head = unpack_head(ring[:HEAD_READ_BYTES])
        if head is None or head.boot != boot_in(BOOT_FILE):
            continue
        for number in range(head.taken + 1, head.taken + 1 + SLOTS):
            record = ring[record_offset(number) :][:RECORD_BYTES]
            count += unpack_record(record, number, head.term) is not None
    return count
