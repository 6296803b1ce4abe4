"""How far the log was durable when that was last waited for: a small file beside the database.

SQLite takes a damaged frame of its log for the end that a crash left, and forgets all commits behind it. So
after each sync of the log it is noted which log that was (its salts) and how many frames were committed; one
that has fewer at the next start has lost what was acknowledged, and the start is refused. The note itself is
not synced: a power loss leaves an older one, which asks for less. A log that is gone as a whole, or whose
beginning is damaged, is refused too, unless it was noted, durably and before the log was emptied, that all of
it is in the database. A log that was begun anew is not judged: SQLite does that when all is in the database.
Threading: any thread; `retire` in that of the database's only connection that writes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from metaserver import frames, pages
from wire.config import ConfigError

SUFFIX = "-mark"

logger = logging.getLogger("metaserver")

_CHECKED = struct.Struct("<8sI?3xI")


class Durable(NamedTuple):
    """Which log, how many of its frames, and whether all that they have is in the database."""

    salts: bytes
    frames: int
    moved: bool = False


def mark_file(database: Path) -> Path:
    """Return where the mark of a database's log is."""
    return database.with_name(database.name + SUFFIX)


def _shared_file(database: Path) -> Path:
    return database.with_name(database.name + "-shm")


def _log_file(database: Path) -> Path:
    return database.with_name(database.name + "-wal")


class LogMark:
    """The mark of one open database. Its descriptors stay open until the database is closed.

    To close one of the shared memory would drop the locks that SQLite has on it.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._shared = self._mark = -1
        self._failing = False
        self._retired = Durable(b"", 0)
        self._lock = threading.Lock()

    def look(self) -> Durable | None:
        """Return what is committed now; None if there is no log, or it is being changed at this moment."""
        with self._lock:
            if self._shared < 0:
                try:
                    self._shared = os.open(_shared_file(self._database), os.O_RDONLY)
                except FileNotFoundError:
                    return None
        return _decode(os.pread(self._shared, 2 * frames.SHARED_HEADER.size, 0))

    def keep(self, durable: Durable | None) -> None:
        """Note what was committed before a sync that has ended since.

        Where that cannot be written, the mark stays as it was, and asks for less.
        """
        with self._lock:
            if durable is None or not durable.frames or self._was_retired(durable):
                return
            try:
                self._write(durable)
                self._failing = False
            except OSError as error:
                if not self._failing:
                    logger.warning("how far the log is durable cannot be noted: %s", error)
                self._failing = True

    def _was_retired(self, durable: Durable) -> bool:
        """Tell whether that was looked at before all of it was noted to be in the database."""
        return durable.salts == self._retired.salts and durable.frames <= self._retired.frames

    def _write(self, durable: Durable) -> None:
        if self._mark < 0:
            self._mark = os.open(mark_file(self._database), os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(self._mark, _encode(durable), 0)

    def retire(self, execute: Callable[[str], sqlite3.Cursor]) -> bool:
        """Move the log into the database if nobody reads it, and note that: before the log may be emptied.

        Args:
            execute: of the only connection that writes.

        Returns:
            Whether the log may be emptied now.

        Raises:
            sqlite3.Error: it cannot be moved.
        """
        durable = self.look()
        (busy, pages_logged, pages_moved), *_ = execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        if durable is None or busy or not 0 <= pages_logged == pages_moved:
            return False
        if durable.frames:
            self._note_moved(durable)
        return True

    def _note_moved(self, durable: Durable) -> None:
        """Note durably that the log is not needed any more. Without room for that, nothing is known of it."""
        with self._lock:
            self._retired = durable
            try:
                self._write(durable._replace(moved=True))
                os.fdatasync(self._mark)
            except OSError as error:
                logger.warning("that the log is in the database cannot be noted: %s", error)
                mark_file(self._database).unlink(missing_ok=True)
                self._close_mark()

    def close(self) -> None:
        """Let go, after the database was closed, the last connection of which may have removed the log."""
        marked = _marked(self._database)
        if marked and not marked.moved and not _log_file(self._database).exists():
            self._note_moved(marked)
        self._close_mark()
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1

    def _close_mark(self) -> None:
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1


def refuse_damaged_log(database: Path) -> None:
    """Refuse a log that is gone, or ends before what was durable. This process must not have it open.

    It is looked at read-only: the end of another connection would move the rest into the database and delete
    the log, and nobody would ever know.

    Raises:
        ConfigError: it does.
        sqlite3.Error: the database cannot be read.
    """
    marked = _marked(database)
    if marked is None or marked.moved:
        return
    if _begin_of_log(database) is None:
        raise ConfigError(
            f"{_log_file(database)}, the log of the metadata database, is gone or damaged at its beginning, "
            "and it had changes that are nowhere else: put the file back if you have it; otherwise "
            f"{pages.ADVICE}"
        )
    with closing(pages.connect(database, read_only=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        lost = _lost_frames(database, marked)
    if lost:
        raise ConfigError(
            f"{database}-wal is damaged: {lost} of its last pages, which were durable, are lost; "
            f"{pages.ADVICE}"
        )


def _marked(database: Path) -> Durable | None:
    """Return what was noted last, if it is whole."""
    try:
        salts, count, moved, checksum = _CHECKED.unpack(mark_file(database).read_bytes())
    except (FileNotFoundError, struct.error):
        return None
    marked = Durable(salts, count, moved)
    return marked if checksum == _checksum(marked) else None


def _encode(durable: Durable) -> bytes:
    return _CHECKED.pack(*durable, _checksum(durable))


def _checksum(durable: Durable) -> int:
    return zlib.crc32(durable.salts, 2 * durable.frames + durable.moved)


def _begin_of_log(database: Path) -> frames.LogHeader | None:
    """Return the header of the log; None if there is no log, or it is damaged there."""
    try:
        with _log_file(database).open("rb") as log:
            return frames.decode_log_header(log.read(frames.LOG_HEADER_BYTES))
    except FileNotFoundError:
        return None


def _lost_frames(database: Path, marked: Durable) -> int:
    """Return how many durable frames the log lacks, as SQLite has just read it."""
    try:
        found = _decode(_shared_file(database).read_bytes()[: 2 * frames.SHARED_HEADER.size])
    except FileNotFoundError:
        return 0
    if found is None or found.salts != marked.salts:
        return 0
    return max(0, marked.frames - found.frames)


def _decode(raw: bytes) -> Durable | None:
    """Read the shared memory's header, of which there are two copies."""
    size = frames.SHARED_HEADER.size
    first, second = raw[:size], raw[size:]
    if first != second or len(first) < size:
        return None
    _, count, salts = frames.SHARED_HEADER.unpack(first)
    return Durable(salts, count)
