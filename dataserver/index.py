"""Where each block is: an SQLite file that is a cache only, rebuilt from the segments when it is unusable.

Changes are kept in memory and saved by `save`, together with how far each segment is known to be durable:
rows past that place are dropped when the file is opened again, and found anew by a scan. Damage that is met
while it is open is told (`on_damage`), so that it can be built anew. Nothing here reads or writes segments.
Safe in any thread; `save` and `freed`/`forget_freed` belong to one thread at a time.

Persisted:
    meta.name, meta.value   "format"; "blocks" and "sum": the number of rows in `blocks` and the sum of their
                            `checksum` modulo 2**63, so that lost rows are noticed; "segments": the CRC-32 of
                            all rows of `segments`
    segments.number         as in the file's name
    segments.identity       the random identity in the file's first page
    segments.indexed_to     below this place every record has its row, and is durable
    segments.durable_to     below this place every record is durable; it is the same, but where the disk
                            could not give what lies at `indexed_to`
    segments.damaged        damaged regions that scans have found below `indexed_to`
    blocks.block            the block's id; .segment, .offset: the place of its header; .length: of its bytes;
                            .digest: as it was put; .checksum: CRC-32 of the row
    freed.*                 records that were deleted or replaced, and whose space is not freed yet
"""

from __future__ import annotations

import sqlite3
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from dataserver.record import PAGE_BYTES, record_bytes
from wire.digest import BLOCK_BYTES
from wire.errors import InternalError
from wire.messages import BLOCK_ID_BYTES, BlockRecord
from wire.read_ahead import read_file_ahead

INDEX_FORMAT = 3
_SUM_MODULUS = 2**63
_SEEN_LIMIT = 8192
_WRITER_BYTES = 8
"""Ids that begin with the same bytes are of one writer, which counts upwards in the rest."""
_WRITERS_LIMIT = 1024
_DAMAGED = "the data server's index is damaged, and is built anew"

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (number INTEGER PRIMARY KEY, identity BLOB NOT NULL, indexed_to INTEGER NOT NULL,
                       durable_to INTEGER NOT NULL, damaged INTEGER NOT NULL);
CREATE TABLE blocks (block BLOB PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
                     length INTEGER NOT NULL, digest BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE freed (segment INTEGER, offset INTEGER, block BLOB NOT NULL, length INTEGER NOT NULL,
                    digest BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (segment, offset))
                    WITHOUT ROWID;
"""
_PACKED = struct.Struct(">16sQQI32s")
_PACKED_SEGMENT = struct.Struct(">Q16sQQQ")


class IndexUnusable(Exception):
    """The index file is damaged, of another format, or contradicts itself."""


class Entry(NamedTuple):
    """Where a block's record is: the place of its header. `length` and `digest` are as they were put."""

    block: bytes
    segment: int
    offset: int
    length: int
    digest: bytes


class SegmentRow(NamedTuple):
    """What the index knows of a segment."""

    number: int
    identity: bytes
    indexed_to: int
    durable_to: int
    damaged: int


class Totals(NamedTuple):
    """How many blocks there are, their bytes, the sum of their rows' checksums."""

    blocks: int
    length: int
    sum: int


class Index:
    """An open index.

    Attributes:
        segment_counts: how many live records each segment has.
        damage: what is wrong with the file, "" as long as nothing was met. It answers no more then.
        on_damage: called when that is met, in any thread.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            IndexUnusable: it cannot be trusted; `discard` it and build it anew.
        """
        self.damage = ""
        self.on_damage: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._writes = threading.Lock()
        self._changed: dict[bytes, Entry | None] = {}
        self._saving: dict[bytes, Entry | None] = {}
        self._freed: dict[tuple[int, int], Entry] = {}
        self._seen: dict[bytes, Entry] = {}  # rows that were read and not changed since
        self._highest: dict[bytes, bytes] = {}  # no row of this writer has a greater id
        self._uncounted: list[tuple[Entry, int]] = []  # changes that the sum of checksums lacks
        self.is_new = not path.exists()
        if not self.is_new:
            with suppress(OSError):  # connecting tells what is wrong
                read_file_ahead(path)  # _check goes through all of it
        self._writer, self._reader = _connect(path), _connect(path)
        try:
            _prepare(self._writer)
            _prepare(self._reader)
            if self.is_new:
                self._create()
            (self._blocks, self._bytes, self._sum), self.segment_counts = _check(self._writer)
        except (sqlite3.DatabaseError, struct.error, TypeError, UnicodeDecodeError) as error:
            self.close()  # what SQLite says of a damaged name may be no text
            raise IndexUnusable(str(error)) from None

    def _create(self) -> None:
        self._writer.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        self._save_meta(Totals(0, 0, 0), [])

    def get(self, block: bytes) -> Entry | None:
        """Return where a block is, or None."""
        with self._lock:
            if (seen := self._seen.get(block)) is not None:
                return seen
            if block in self._changed:
                return self._changed[block]
            if block in self._saving:
                return self._saving[block]
            if block > self._highest_row(block[:_WRITER_BYTES]):
                return None  # so that a new block needs no look into the file
            found = self._read_rows(
                "SELECT block, segment, offset, length, digest, checksum FROM blocks WHERE block = ?",
                (block,),
            )
            return self._remember(found[0]) if found else None

    def _read_rows(self, statement: str, values: Sequence[object]) -> list[Entry]:
        """Return entries, each held against its checksum. Raises InternalError if the file is damaged."""
        found = []
        for *row, checksum in self._read(statement, values):
            entry = Entry(*row)
            try:
                is_as_saved = _checksum(entry) == checksum
            except (struct.error, TypeError):
                is_as_saved = False
            if not is_as_saved:
                self._note_damage("a row is damaged")
                raise InternalError(_DAMAGED)
            found.append(entry)
        return found

    def _read(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Return rows. Raises InternalError if the file is damaged."""
        if self.damage:
            raise InternalError(_DAMAGED)
        try:
            return self._reader.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            self._note_if_damage(error)
            raise InternalError(f"the index cannot be read: {error}") from None

    def _note_if_damage(self, error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._note_damage(str(error))

    def _note_damage(self, what: str) -> None:
        if not self.damage:
            self.damage = what
            self.on_damage()

    def _highest_row(self, writer: bytes) -> bytes:
        """Return an id that no row of this writer is greater than."""
        highest = self._highest.get(writer)
        if highest is None:
            ((row,),) = self._read(
                "SELECT max(block) FROM blocks WHERE block >= ? AND block <= ?",
                (writer, writer.ljust(BLOCK_ID_BYTES, b"\xff")),
            )
            if len(self._highest) >= _WRITERS_LIMIT:
                self._highest.clear()
            highest = self._highest[writer] = row or b""
        return highest

    def _note_rows(self, blocks: Iterable[bytes]) -> None:
        """Say that there are rows of these ids now."""
        highest = self._highest
        for block in blocks:
            if block > highest.get(block[:_WRITER_BYTES], block):
                highest[block[:_WRITER_BYTES]] = block

    def _remember(self, entry: Entry) -> Entry:
        if len(self._seen) >= _SEEN_LIMIT:
            self._seen.clear()
        self._seen[entry.block] = entry
        return entry

    def put(self, entry: Entry, before: Entry | None) -> None:
        """Let a block be at a new place. `before`: what `get` says now, to be forgotten but not freed."""
        with self._lock:
            self._change(entry.block, before, entry)

    def remove(self, block: bytes) -> Entry | None:
        """Forget a block and note its place as free; return the place, None if it was not here."""
        with self._lock:
            entry = self.get(block)
            if entry is not None:
                self._change(block, entry, None)
                self._freed[entry.segment, entry.offset] = entry
        return entry

    def free(self, entry: Entry) -> None:
        """Note the place of a record that was replaced as free."""
        with self._lock:
            self._freed[entry.segment, entry.offset] = entry

    def drop_from(self, segment: int, offset: int) -> None:
        """Forget all that is known of a segment from `offset` on, freed places too: it is scanned anew."""
        rows = self._reader.execute(
            "SELECT block FROM blocks WHERE segment = ? AND offset >= ?", (segment, offset)
        ).fetchall()
        with self._lock:
            for (block,) in rows:
                self._change(block, self.get(block), None)
            self._freed = {place: e for place, e in self._freed.items() if place < (segment, offset)}
        self._writer.execute("DELETE FROM freed WHERE segment = ? AND offset >= ?", (segment, offset))

    def _change(self, block: bytes, before: Entry | None, after: Entry | None) -> None:
        if before is not None:
            self._count(before, -1)
        if after is not None:
            self._count(after, 1)
        self._changed[block] = after
        self._seen.pop(block, None)

    def _count(self, entry: Entry, sign: int) -> None:
        self._blocks += sign
        self._bytes += sign * entry.length
        self._uncounted.append((entry, sign))
        self.segment_counts[entry.segment] += sign

    @property
    def totals(self) -> Totals:
        with self._lock:
            for entry, sign in self._uncounted:
                self._sum = (self._sum + sign * _checksum(entry)) % _SUM_MODULUS
            self._uncounted.clear()
            return Totals(self._blocks, self._bytes, self._sum)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._blocks

    @property
    def unsaved(self) -> int:
        """How many changes are in memory only."""
        return len(self._changed) + len(self._freed)

    def page(self, after: bytes, limit: int) -> list[BlockRecord]:
        """Return up to `limit` records in the order of ids, all greater than `after`."""
        with self._lock:
            changes = {**self._saving, **self._changed}
            gone = sum(1 for entry in changes.values() if entry is None)
            rows = self._read_rows(
                "SELECT block, segment, offset, length, digest, checksum FROM blocks WHERE block > ?"
                " ORDER BY block LIMIT ?",
                (after, limit + gone),
            )
        found = {row.block: BlockRecord(row.block, row.length, row.digest) for row in rows}
        for block, entry in changes.items():
            if entry is None:
                found.pop(block, None)
            elif block > after:
                found[block] = BlockRecord(block, entry.length, entry.digest)
        return [found[block] for block in sorted(found)[:limit]]

    def entries_by_place(self) -> Iterator[Entry]:
        """Yield the saved entries in the order of their places. Nothing may be changed meanwhile."""
        rows = self._reader.execute(
            "SELECT block, segment, offset, length, digest FROM blocks ORDER BY segment, offset"
        )
        return (Entry(*row) for row in rows)

    def segment_rows(self) -> dict[int, SegmentRow]:
        """Return what was saved of each segment."""
        return {row.number: row for row in _segment_rows(self._reader)}

    def last_ends(self) -> dict[int, int]:
        """Return for each segment with saved rows the place of its last record."""
        rows = self._reader.execute(
            "SELECT segment, max(offset) FROM (SELECT segment, offset FROM blocks"
            " UNION ALL SELECT segment, offset FROM freed) GROUP BY segment"
        ).fetchall()
        return dict(rows)

    def save(self, segments: Iterable[SegmentRow]) -> None:
        """Write all changes and the segments' rows in one transaction.

        Args:
            segments: all segments; every record below `indexed_to` must be in the index by now.

        Raises:
            sqlite3.Error: (a full disk, for example) nothing is lost, the next save tries again.
        """
        with self._writes:
            with self._lock:
                self._saving, self._changed = self._changed, {}
                totals, freed = self.totals, dict(self._freed)
            try:
                with self._transaction():
                    self._write(self._saving, totals, freed.values(), sorted(segments))
            except sqlite3.Error:
                with self._lock:
                    self._changed, self._saving = {**self._saving, **self._changed}, {}
                raise
            with self._lock:
                self._note_rows(self._saving)
                self._saving = {}
                for place in freed:
                    self._freed.pop(place, None)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            yield
            self._writer.execute("COMMIT")
        except BaseException as error:
            if self._writer.in_transaction:
                self._writer.rollback()
            if isinstance(error, sqlite3.Error):
                self._note_if_damage(error)
            raise

    def _write(
        self,
        changes: dict[bytes, Entry | None],
        totals: Totals,
        freed: Iterable[Entry],
        segments: list[SegmentRow],
    ) -> None:
        writer = self._writer
        writer.executemany(
            "DELETE FROM blocks WHERE block = ?",
            [(block,) for block, entry in changes.items() if entry is None],
        )
        writer.executemany(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
            [(*entry, _checksum(entry)) for entry in changes.values() if entry is not None],
        )
        writer.executemany(
            "INSERT OR REPLACE INTO freed VALUES (?, ?, ?, ?, ?, ?)",
            [(e.segment, e.offset, e.block, e.length, e.digest, _checksum(e)) for e in freed],
        )
        writer.execute("DELETE FROM segments")
        writer.executemany("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", segments)
        self._save_meta(totals, segments)

    def _save_meta(self, totals: Totals, segments: list[SegmentRow]) -> None:
        values = {
            "format": INDEX_FORMAT,
            "blocks": totals.blocks,
            "sum": totals.sum,
            "segments": _segments_checksum(segments),
        }
        self._writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def freed(self, limit: int, after: tuple[int, int] = (-1, 0)) -> list[Entry]:
        """Return up to `limit` places whose space can be freed, in their order, all beyond `after`.

        `after`: a segment and an offset.
        """
        with self._writes, self._lock:
            rows = self._read_rows(
                "SELECT block, segment, offset, length, digest, checksum FROM freed"
                " WHERE (segment, offset) > (?, ?) ORDER BY segment, offset LIMIT ?",
                (*after, limit),
            )
            places = {(row.segment, row.offset): row for row in rows}
            places |= {place: entry for place, entry in self._freed.items() if place > after}
        return [places[place] for place in sorted(places)[:limit]]

    def forget_freed(self, entries: Iterable[Entry]) -> None:
        """Say that the space of these places is free. Raises sqlite3.Error: they come again."""
        places = [(entry.segment, entry.offset) for entry in entries]
        with self._writes:
            with self._lock:
                for place in places:
                    self._freed.pop(place, None)
            with self._transaction():
                self._writer.executemany("DELETE FROM freed WHERE segment = ? AND offset = ?", places)

    def close(self) -> None:
        """Let the file go; what was not saved is lost."""
        self._reader.close()
        self._writer.close()


def discard(path: Path) -> None:
    """Remove an index file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file. Raises IndexUnusable."""
    try:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise IndexUnusable(str(error)) from None


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -8192")


def _checksum(entry: Entry) -> int:
    return zlib.crc32(_PACKED.pack(entry.block, entry.segment, entry.offset, entry.length, entry.digest))


def _segment_rows(connection: sqlite3.Connection) -> list[SegmentRow]:
    """Return the rows of all segments, in their order. Raises sqlite3.Error."""
    rows = connection.execute(
        "SELECT number, identity, indexed_to, durable_to, damaged FROM segments ORDER BY number"
    )
    return [SegmentRow(*row) for row in rows]


def _segments_checksum(rows: list[SegmentRow]) -> int:
    """Return what tells that no row of a segment was changed or lost. Raises struct.error for odd values."""
    return zlib.crc32(b"".join(_PACKED_SEGMENT.pack(*row) for row in rows))


def _check(connection: sqlite3.Connection) -> tuple[Totals, Counter[int]]:
    """Read everything once, trust nothing: rows, their sums, places that overlap. Raises IndexUnusable."""
    if connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
        raise IndexUnusable("the database file is damaged")
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    if meta.get("format") != INDEX_FORMAT:
        raise IndexUnusable(f"format {meta.get('format')!r} is unknown")
    counts: Counter[int] = Counter()
    blocks = total_bytes = checksums = 0
    segment, end = -1, 0
    rows = connection.execute(
        "SELECT block, segment, offset, length, digest, checksum, 1 AS live FROM blocks UNION ALL"
        " SELECT block, segment, offset, length, digest, checksum, 0 FROM freed ORDER BY segment, offset"
    )
    pack, crc32 = _PACKED.pack, zlib.crc32  # a million rows are gone through at a start
    for block, in_segment, offset, length, digest, checksum, live in rows:
        is_as_saved = crc32(pack(block, in_segment, offset, length, digest)) == checksum
        if not is_as_saved or length > BLOCK_BYTES or offset % PAGE_BYTES:
            raise IndexUnusable("a row is damaged")
        if in_segment != segment:
            segment, end = in_segment, 0
        if offset < end:
            raise IndexUnusable("two records overlap")
        end = offset + record_bytes(length)
        if live:
            blocks, total_bytes, checksums = blocks + 1, total_bytes + length, checksums + checksum
            counts[segment] += 1
    if (blocks, checksums % _SUM_MODULUS) != (meta.get("blocks"), meta.get("sum")):
        raise IndexUnusable("rows are missing")
    if _segments_checksum(_segment_rows(connection)) != meta.get("segments"):
        raise IndexUnusable("what it says of the segments is damaged")
    return Totals(blocks, total_bytes, checksums % _SUM_MODULUS), counts
