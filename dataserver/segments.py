"""The block store on disk: an outline of what happens to records; the parts do it.

Threads: any method from any thread. `_appends` is held while a record is written, `_repairs` while a copy
is judged and replaced, `_syncs` while the disk is waited for; taken in the order repairs, syncs, appends.
What is read comes from the segments every time; the index only says where to look.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dataserver.contract import check_id, check_limit, check_put
from dataserver.directory import INDEX_NAME
from dataserver.freeing import Freeing
from dataserver.index import Entry, discard
from dataserver.known_headers import KnownHeaders
from dataserver.quarantine import DAY_SECONDS, Quarantine
from dataserver.reading import Record
from dataserver.record import PAGE_BYTES, Header, record_bytes
from dataserver.recovery import recover, segment_rows
from dataserver.room import RESERVE_BYTES, Purpose, Reserve
from dataserver.segment import AHEAD_BYTES, DIRECT_BYTES, Segment, create_segment
from wire.digest import Buffer
from wire.directories import sync_directory
from wire.errors import BlockConflict, BlockDamaged, BlockMissing, DigestMismatch, InternalError, NoSpace
from wire.lending import is_as_lent
from wire.messages import BlockPart, BlockRecord

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

SEGMENT_BYTES = 1024 * 1024 * 1024
QUARANTINE_BYTES = 1024 * 1024 * 1024
QUARANTINE_SECONDS = 90 * DAY_SECONDS
UNSAVED_LIMIT = 32768
LITTLE_BYTES = 256 * 1024
"""Zeros are written ahead where no more than this is put between two syncs."""
QUICK_PUT_SECONDS = 0.005
"""A disk that took the last long record in less is quick."""
_RECLAIM_AT_ONCE = 4096
_NOTE_BYTES = PAGE_BYTES
"""What is written down of a losing copy takes so much, one page of the disk."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""The kernel gave the disk up, with what it had not written yet, or the directory is not ours to write to."""


class Place(NamedTuple):
    """Where a record lies, for who looks at (or damages) the file behind the store's back."""

    path: Path
    header_offset: int
    payload_offset: int
    length: int


class SegmentStore:
    """Blocks as records in append-only segment files. Meets contract.BlockStore."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        quarantine_bytes: int = QUARANTINE_BYTES,
        quarantine_seconds: float = QUARANTINE_SECONDS,
        on_damaged_index: Callable[[], None] = lambda: None,
    ) -> None:
        """Open or create the store in `directory`, which the caller has claimed for this process.

        Args:
            directory: exists; holds segments/, index.sqlite and quarantine/.
            segment_bytes: a segment that would grow past this is closed, and a new one begun.
            reserve_bytes: puts are refused while less is free on the disk, and repairs while less than half
                of it is, so that deleting can go on.
            quarantine_bytes: the most that is kept of copies that lost a vote; the oldest go first.
            quarantine_seconds: how long they are kept.
            on_damaged_index: called, in any thread, when the index turns out to be damaged. It is built anew
                when the store is closed and opened again; until then nothing can be found.

        Raises:
            ConfigError, OSError, sqlite3.Error, InternalError: it cannot be opened.
        """
        self._segment_directory = directory / "segments"
        self._segment_directory.mkdir(exist_ok=True)
        sync_directory(directory)
        self._segment_bytes = segment_bytes
        self._reserve = Reserve(reserve_bytes)
        self.quarantine = Quarantine(directory / "quarantine", quarantine_bytes, quarantine_seconds)
        state = recover(self._segment_directory, directory / INDEX_NAME)
        self._index, self._segments, self._active = state.index, state.segments, state.active
        self._index_path = directory / INDEX_NAME
        self._index.on_damage = on_damaged_index
        self._damaged = state.damaged
        self._next_number = max([-1, *self._segments]) + 1
        self._known = KnownHeaders()
        self._unsynced = {s.number for s in self._segments.values() if s.durable_to < s.end}
        self._failure: OSError | None = None
        self._saved_rows = segment_rows(self._segments, self._damaged)
        self._frees = 0
        self._freeing = Freeing()
        self._appended_bytes = 0
        self._syncs_little = False
        self._long_append_seconds = inf
        self._appends, self._repairs, self._syncs = threading.Lock(), threading.Lock(), threading.Lock()
        if self._segments and self._active is None:
            with suppress(OSError):  # the next put tries again, and says why
                self._begin_segment()  # so that no later start appends behind what this one left as it is

    # -- blocks in

    def put(self, block: bytes, digest: bytes, data: Buffer) -> None:
        self._put(block, digest, data, Purpose.PUT)

    def take(self, block: bytes, digest: bytes, data: Buffer) -> None:
        self._put(block, digest, data, Purpose.PROMISE)

    def _put(self, block: bytes, digest: bytes, data: Buffer, purpose: Purpose) -> None:
        pieces = check_put(block, digest, data)
        while not self._append_new(block, digest, pieces, data, purpose=purpose):
            entry = self._index.get(block)
            if entry is None:
                continue
            header = self._record(entry).header()
            if (header.digest if header else entry.digest) != digest:
                raise BlockConflict(f"block {block.hex()} is here already, with other bytes")
            self._repair(block, digest, pieces, data, "its bytes were damaged when it was put again")
            return

    def repair(self, block: bytes, digest: bytes, data: Buffer, note: str) -> str:
        return self._repair(block, digest, check_put(block, digest, data), data, note)

    def _repair(self, block: bytes, digest: bytes, pieces: bytes, data: Buffer, note: str) -> str:
        with self._repairs:
            while True:
                if self._append_new(block, digest, pieces, data, purpose=Purpose.REPAIR):
                    return "filled"
                entry = self._index.get(block)
                if entry is None:
                    continue
                record = self._record(entry)
                header = record.header()
                found = _found_of(record, header)
                if header is not None and (header.digest, header.length, header.pieces, found) == (
                    digest,
                    len(data),
                    pieces,
                    digest,
                ):
                    return "good"
                self._keep_loser(entry, header, digest, found, note, record_bytes(len(data)))
                if self._replace(entry, digest, pieces, data):
                    return "replaced"

    def _append_new(
        self, block: bytes, digest: bytes, pieces: bytes, data: Buffer, *, purpose: Purpose
    ) -> bool:
        """Append a block that is not here; return False, with nothing done, if it is."""
        with self._appends:
            if self._index.get(block) is not None:
                return False
            self._append(block, digest, pieces, data, None, purpose=purpose)
        return True

    def _replace(self, loser: Entry, digest: bytes, pieces: bytes, data: Buffer) -> bool:
        """Append a good copy, durably, and free the losing one; False if the loser is gone by now."""
        with self._appends:
            if self._index.get(loser.block) != loser:
                return False
            self._append(loser.block, digest, pieces, data, loser, purpose=Purpose.REPAIR)
        self.sync()
        self._index.free(loser)
        return True

    def _append(
        self,
        block: bytes,
        digest: bytes,
        pieces: bytes,
        data: Buffer,
        before: Entry | None,
        *,
        purpose: Purpose,
    ) -> None:
        self._refuse_if_failed()
        size = record_bytes(len(data))
        try:
            segment = self._segment_for(size)
            self._reserve.require(segment, size, purpose=purpose)
            begun = time.monotonic()
            header = segment.append(block, digest, pieces, data)
            if len(data) >= DIRECT_BYTES:
                self._long_append_seconds = time.monotonic() - begun
            if not is_as_lent(data):
                segment.cut(header.offset)
                raise DigestMismatch(f"the memory of block {block.hex()} was used for other bytes meanwhile")
        except OSError as error:
            self._long_append_seconds = inf
            if error.errno in _NO_ROOM:
                raise NoSpace("no space is left on the data server's disk") from None
            if error.errno in _REFUSED:
                self._failure = error
            _log.error("block %s cannot be written: %s", block.hex(), error)
            raise InternalError(f"the disk failed: {error}") from None
        self._unsynced.add(segment.number)
        self._appended_bytes += size
        entry = Entry(block, segment.number, header.offset, len(data), digest)
        self._index.put(entry, before)
        if pieces:
            self._known.note(entry, header)
        if self._index.unsaved > UNSAVED_LIMIT:
            self._save_index()

    def _segment_for(self, size: int) -> Segment:
        """Return the segment to append to, a new one if need be. Raises OSError."""
        active = self._active
        if active is None or active.end + size > max(self._segment_bytes, PAGE_BYTES + size):
            if active is not None:
                active.seal()
            active = self._begin_segment()
        return active

    def _begin_segment(self) -> Segment:
        """Make a segment, to which records are appended from now on. Raises OSError."""
        begun = create_segment(self._segment_directory, self._next_number)
        self._next_number += 1
        self._segments = {**self._segments, begun.number: begun}
        self._active = begun
        return begun

    def _keep_loser(
        self,
        entry: Entry,
        header: Header | None,
        expected: bytes,
        found: bytes | None,
        note: str,
        winner_bytes: int,
    ) -> None:
        """Keep a losing copy, if there is room for it and for the record that is to take its place."""
        length = entry.length if header is None else header.length
        segment = self._segments.get(entry.segment)
        raw, lost = segment.read_what_can_be(entry.offset, PAGE_BYTES + length) if segment else (b"", 0)
        if lost:
            note = f"{note}; pages that cannot be read, and are zeros here: {lost}"
        try:
            if segment:
                needed = record_bytes(length) + _NOTE_BYTES + winner_bytes
                self._reserve.require(segment, needed, purpose=Purpose.REPAIR)
            self.quarantine.keep(entry.block, raw, expected, found, note)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoSpace("no space is left to keep the losing copy; it was left where it was") from None
            _log.error("the losing copy of block %s cannot be kept: %s", entry.block.hex(), error)
            raise InternalError(f"the disk failed: {error}") from None

    # -- blocks out

    def get(self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None) -> BlockPart:
        return self._read(block, lambda record: record.part(first_piece, piece_count, room))

    def digest(self, block: bytes, first_piece: int, piece_count: int) -> bytes:
        return self._read(block, lambda record: record.vote(first_piece, piece_count))

    def locate(self, block: bytes) -> Place:
        """Return where a block's record is now, for who may damage it: what is known of it is forgotten.

        Raises BlockMissing.
        """
        entry = self._index.get(block)
        if entry is None:
            raise _missing(block)
        self._known.forget(entry)
        path = self._segments[entry.segment].path
        return Place(path, entry.offset, entry.offset + PAGE_BYTES, entry.length)

    def _read(self, block: bytes, read: Callable[[Record], _T]) -> _T:
        """Read a record; if it was moved or freed meanwhile, look again."""
        check_id(block)
        while True:
            frees = self._frees
            entry = self._index.get(block)
            if entry is None:
                raise _missing(block)
            try:
                result = read(self._record(entry))
            except BlockDamaged:
                if self._index.get(block) == entry:
                    raise
                continue
            if frees == self._frees or self._index.get(block) == entry:
                return result

    def _record(self, entry: Entry) -> Record:
        return Record(self._segments.get(entry.segment), entry, self._known)

    # -- what is here

    def length(self, block: bytes) -> int | None:
        entry = self._index.get(block)
        return None if entry is None else entry.length

    def in_disk_order(self, blocks: Sequence[bytes]) -> list[bytes]:
        def place(block: bytes) -> tuple[int, int]:
            entry = self._index.get(block)
            return (-1, 0) if entry is None else (entry.segment, entry.offset)

        return sorted(blocks, key=place)

    def inventory(self, after: bytes, limit: int) -> list[BlockRecord]:
        return self._index.page(after, check_limit(limit))

    def count(self) -> int:
        return self._index.blocks

    def has_room_for(self, blocks: int, length: int) -> bool:
        active = self._active
        if active is None or self._failure is not None:
            return False
        if blocks * record_bytes(length) > self._reserve.size // 2:  # repairs leave this half
            return False
        try:
            return self._reserve.leaves(active, 0)
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        usage, totals = shutil.disk_usage(self._segment_directory), self._index.totals
        segments = self._segments.values()
        return {
            "blocks": totals.blocks,
            "bytes_live": totals.length,
            "quarantined": self.quarantine.count,
            "bytes_quarantined": self.quarantine.length,
            "free_bytes": max(0, usage.free - self._reserve.size),
            "total_bytes": usage.total,
            "segments": len(segments),
            "damaged_regions": sum(self._damaged.values())
            + sum(len(s.damaged_at) + (s.unread_from is not None) for s in segments),
            "disk_failure": None if self._failure is None else str(self._failure.strerror),
        }

    # -- blocks gone

    def delete(self, blocks: Sequence[bytes]) -> int:
        removed = 0
        for block in blocks:
            with self._appends:
                removed += self._index.remove(block) is not None
        return removed

    def _reclaim(self) -> None:
        """Free the space of deleted and replaced records, neighbours together; unlink empty segments."""
        self._freeing.begin()
        after = (-1, 0)
        failure: OSError | None = None
        while entries := self._index.freed(_RECLAIM_AT_ONCE, after):
            after = entries[-1].segment, entries[-1].offset
            judged = self._freeing.judge(entries, self._segments)
            self._frees += 1
            failure = self._freeing.free(judged, self._segments) or failure
            with self._appends:
                self._unsynced |= {entry.segment for entry in entries} & self._segments.keys()
            self.sync()
            try:
                self._index.forget_freed([entry for entry in entries if judged[entry] is not None])
            except sqlite3.Error as error:
                _log.warning("the index cannot be saved now: %s", error)
                return
        self._unlink_empty()
        if failure is not None:
            raise failure

    def _unlink_empty(self) -> None:
        counts = self._index.segment_counts
        with self._appends:  # one of these may begin a segment
            empty = [
                segment
                for number, segment in self._segments.items()
                if counts[number] == 0 and not self._is_damaged(segment) and number + 1 < self._next_number
            ]
            if not empty:
                return
            gone = {segment.number for segment in empty}
            self._segments = {n: segment for n, segment in self._segments.items() if n not in gone}
            self._unsynced -= gone
        for segment in empty:
            segment.remove()
        sync_directory(self._segment_directory)

    def _is_damaged(self, segment: Segment) -> bool:
        is_damaged = self._damaged.get(segment.number) or segment.damaged_at
        return bool(is_damaged) or segment.unread_from is not None

    # -- durability

    def sync(self) -> None:
        with self._syncs:
            self._refuse_if_failed()
            with self._appends:
                waiting = [(s, s.end) for number in self._unsynced if (s := self._segments.get(number))]
                self._unsynced.clear()
                self._syncs_little = 0 < self._appended_bytes <= LITTLE_BYTES
                self._appended_bytes = 0
            for segment, end in waiting:
                self._require(segment, segment.sync)
                segment.durable_to = max(segment.durable_to, end)

    def _require(self, segment: Segment, step: Callable[[], None]) -> None:
        """Take no write any more if this step on a segment fails. Raises InternalError."""
        try:
            step()
        except OSError as error:
            self._failure = error
            _log.critical("%s cannot be made durable: %s; no more writes", segment.path, error)
            raise InternalError(f"the disk failed: {error}") from None

    @property
    def has_little_unsynced(self) -> bool:
        return self._appended_bytes <= LITTLE_BYTES

    @property
    def puts_quickly(self) -> bool:
        return self._long_append_seconds < QUICK_PUT_SECONDS

    @property
    def wants_ahead(self) -> bool:
        active = self._active
        return self._syncs_little and active is not None and active.ready_to - active.end < AHEAD_BYTES // 2

    def write_ahead(self) -> None:
        active = self._active
        if active is None or self._failure is not None:
            return
        try:
            if not self._reserve.leaves(active, AHEAD_BYTES):
                return
            active.write_ahead(self._segment_bytes)
        except OSError as error:
            _log.warning("no zeros can be written ahead in %s: %s", active.path, error)
            return
        with self._appends:
            self._unsynced.add(active.number)
        self.sync()

    def _refuse_if_failed(self) -> None:
        """After a failed sync nobody knows what is on disk: no write is taken until a restart.

        Nor if a segment was removed: what was put there would be missing then.
        """
        if self._failure is not None:
            raise InternalError(f"the disk failed: {self._failure}")

    def maintain(self) -> None:
        self.sync()
        for segment in self._segments.values():
            self._require(segment, segment.require_name)
        if self._index.damage:
            return
        try:
            self._save_index()
        finally:  # what is freed may be the room that the index lacks
            try:
                self._reclaim()
            finally:
                self.quarantine.trim()

    def _save_index(self) -> None:
        rows = segment_rows(self._segments, self._damaged)
        if rows == self._saved_rows and not self._index.unsaved:
            return
        try:
            self._index.save(rows)
            self._saved_rows = rows
        except sqlite3.Error as error:
            _log.warning("the index cannot be saved now: %s", error)
            if self._index.unsaved > 4 * UNSAVED_LIMIT:
                raise NoSpace(f"the index cannot be saved: {error}") from None

    def close(self) -> None:
        try:
            if self._failure is None:
                self.maintain()
                if self._active is not None:
                    self._active.seal()
        except (OSError, InternalError, NoSpace, sqlite3.Error) as error:
            _log.error("what was to be done at the end is left to the next start: %s", error)
        self._index.close()
        if self._index.damage:
            _log.warning("the index is damaged (%s): the next start builds it anew", self._index.damage)
            discard(self._index_path)
        self._segments, self._active = {}, None


def _missing(block: bytes) -> BlockMissing:
    return BlockMissing(f"block {block.hex()} is not here")


def _found_of(record: Record, header: Header | None) -> bytes | None:
    """Return the digest of a record's bytes as they are now, None if they cannot be read."""
    try:
        return None if header is None else record.whole_vote(header)
    except BlockDamaged:
        return None
