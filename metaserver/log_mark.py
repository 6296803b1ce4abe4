"""How far the log was durable when that was last waited for: a small file beside the database.

SQLite takes a damaged frame of its log for the end that a crash left, and forgets all commits behind it. So
after each sync of the log it is noted which log that was (its salts) and how many frames were committed; one
that has fewer at the next start has lost what was acknowledged, and the start is refused. The note itself is
not synced: a power loss leaves an older one, which asks for less. A log that is gone as a whole, or whose
beginning is damaged, is refused too, unless it was noted, durably and before the log was emptied, that all of
it is in the database.

A whole log that an older one took the place of is refused as well: of a log that was begun over (SQLite does
that when all is in the database) the salts tell which is newer. A log that is begun where there is none has
random salts: that this may happen is noted durably before, and its salts before the server serves.
Every order of crashes and power losses must leave a database that is not refused:
docs/decisions/0012-checksums-of-pages.md goes through them.
Threading: any thread; `begin` and `retire` in that of the database's only connection that writes.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import closing
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from metaserver import frames, log_failure, pages
from wire.config import ConfigError
from wire.directories import sync_directory

SUFFIX = "-mark"
RESTARTS_MAX = 1 << 16
"""So often at most a log is begun over without that this is noted, once after nearly each checkpoint.

Of logs with random salts, one in 65,536 looks like one that was begun over so often.
"""

logger = logging.getLogger("metaserver")

_CHECKED = struct.Struct("<8sIB3xI")


class Need(IntEnum):
    """Whether the log that the mark names is needed."""

    NEEDED = 0
    MOVED = 1
    """All of it is in the database; another one may have been begun where there was none."""
    LAST = 2
    """All of it is in the database, and no log was begun since but this one over."""


class Durable(NamedTuple):
    """Which log, how many of its frames, and whether it is needed."""

    salts: bytes
    frames: int
    need: Need = Need.NEEDED


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
        self._noted: Durable | None = None
        """What was noted last since `begin`."""
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Refuse a wrong log; note that a log may be begun, if there is none. Before any connection is open.

        A log that is there is made durable, as what wrote it may have failed to.

        Raises:
            ConfigError: the log is gone, damaged, or older than what was durable.
            OSError: the log cannot be made durable, or the mark can neither be written nor be removed.
            sqlite3.Error: the database cannot be read.
        """
        marked, found = _marked(self._database), _find_log(self._database)
        if marked is not None:
            _refuse_wrong_log(self._database, marked, found)
            if found is None or not found.frames:
                if not self._expect_any_log():
                    raise OSError(errno.EIO, "what is known of the log can neither be noted nor be forgotten")
                self._noted = None
        if found is not None:
            durable = marked.frames if marked and marked.salts == found.salts else 0
            log_failure.write_again(_log_file(self._database), durable, found.frames)

    def _expect_any_log(self) -> bool:
        """Note that a log may follow whose salts say nothing; return whether that is durable."""
        marked = self._noted or _marked(self._database)
        if marked is None or marked.need is Need.MOVED:
            return True
        return self._note_durably(marked._replace(need=Need.MOVED))

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
        """Note what was committed before a sync that has ended since: durably, if it is the first of a log.

        Where that cannot be written, the mark stays as it was, and asks for less.
        """
        with self._lock:
            if durable is None or not durable.frames or not self._is_news(durable):
                return
            try:
                self._write(durable)
                if self._noted is None or self._noted.salts != durable.salts:
                    os.fdatasync(self._mark)
                self._noted = durable
                self._failing = False
            except OSError as error:
                if not self._failing:
                    logger.warning("how far the log is durable cannot be noted: %s", error)
                self._failing = True

    def _is_news(self, durable: Durable) -> bool:
        """Tell whether that is not behind what is noted: it was looked at before others noted something."""
        if self._noted is None:
            return True
        if durable.salts == self._noted.salts:
            return durable.frames > self._noted.frames
        return frames.count_restarts(self._noted.salts, durable.salts) < 1 << 31

    def _write(self, durable: Durable) -> None:
        if self._mark < 0:
            self._mark = self._open_mark()
        os.pwrite(self._mark, _encode(durable), 0)

    def _open_mark(self) -> int:
        """Return a descriptor of the mark, made if need be, whose name is durable. Raises OSError."""
        descriptor = os.open(mark_file(self._database), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            sync_directory(self._database.parent)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

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
            return self._note_durably(durable._replace(need=Need.LAST))
        return self._expect_any_log()  # on a full disk it may be emptied any number of times

    def checkpoint(self, execute: Callable[[str], sqlite3.Cursor]) -> None:
        """Move what nobody reads of the log into the database, and note how far that was.

        Args:
            execute: of any connection, which must be that of this thread.

        Raises:
            sqlite3.Error: it cannot be moved.
        """
        before = self.look()
        (_, _, pages_moved), *_ = execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        after = self.look()
        if before is None or after is None or pages_moved < 0:
            return
        # SQLite makes durable what it moves; it begins the log over when all of it was moved
        self.keep(after._replace(frames=pages_moved) if after.salts == before.salts else before)

    def _note_durably(self, durable: Durable) -> bool:
        """Note that the log is not needed any more, or have no mark if the disk does not let us.

        Returns:
            Whether either is durable. If not, the disk failed: a power loss may bring back a mark that asks
            for the log, so that it must stay, and nothing more is put into it.
        """
        with self._lock:
            try:
                self._write(durable)
                os.fdatasync(self._mark)
                self._noted = durable
                return True
            except OSError as error:
                logger.warning("that the log is in the database cannot be noted: %s", error)
            self._noted = None
            self._close_mark()
            try:
                mark_file(self._database).unlink(missing_ok=True)
                sync_directory(self._database.parent)
                return True
            except OSError as error:
                log_failure.note(self._database, f"what is known of it cannot be forgotten: {error.strerror}")
                return False

    def close(self) -> None:
        """Let go, after the database was closed, the last connection of which may have removed the log.

        Not to be called if `begin` refused: it would take a log that is gone for one that is not needed.
        """
        marked = _marked(self._database)
        if marked and not _log_file(self._database).exists():
            last = self.look() if self._shared >= 0 else None
            last = (last if last and last.frames else marked)._replace(need=Need.LAST)
            if last != marked:
                self._note_durably(last)
        self._close_mark()
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1

    def _close_mark(self) -> None:
        if self._mark >= 0:
            os.close(self._mark)
            self._mark = -1


def _find_log(database: Path) -> Durable | None:
    """Return which log is there and how many frames of it SQLite takes; None if it takes it for no log.

    It is looked at read-only: the end of another connection would move the rest into the database and delete
    the log, and nobody would ever know.

    Raises:
        sqlite3.Error: the database cannot be read.
    """
    try:
        with _log_file(database).open("rb") as log:
            raw = log.read(frames.LOG_HEADER_BYTES + 1)
        if len(raw) <= frames.LOG_HEADER_BYTES or frames.decode_log_header(raw) is None:
            return None
        with closing(pages.connect(database, read_only=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return _decode(_shared_file(database).read_bytes()[: 2 * frames.SHARED_HEADER.size])
    except FileNotFoundError:
        return None


def _refuse_wrong_log(database: Path, marked: Durable, found: Durable | None) -> None:
    """Refuse a log that is gone, ends before what was durable, or is older. Raises ConfigError."""
    log = _log_file(database)
    if found is None:
        if marked.need is Need.NEEDED:
            raise ConfigError(
                f"{log}, the log of the metadata database, is gone or damaged at its beginning, "
                "and it had changes that are nowhere else: put the file back if you have it; otherwise "
                f"{pages.ADVICE}"
            )
    elif found.salts == marked.salts:
        if found.frames < marked.frames:
            _refuse_short_log(log, marked, found)
    elif marked.need is not Need.MOVED and not (
        0 < frames.count_restarts(marked.salts, found.salts) < RESTARTS_MAX
    ):
        _refuse_older_log(log, marked)


def _refuse_short_log(log: Path, marked: Durable, found: Durable) -> None:
    if marked.need is not Need.NEEDED:
        _refuse_older_log(log, marked)
    raise ConfigError(
        f"{log} is damaged: {marked.frames - found.frames} of its last pages, which were durable, are lost; "
        f"{pages.ADVICE}"
    )


def _refuse_older_log(log: Path, marked: Durable) -> None:
    what = f"{log} is not the last log of the metadata database, but an older one, or of another database"
    if marked.need is Need.NEEDED:
        raise ConfigError(
            f"{what}; the last one had changes that are nowhere else: put that file back if you have it; "
            f"otherwise {pages.ADVICE}"
        )
    raise ConfigError(f"{what}; the database has all changes without it: move it away, and start again")


def _marked(database: Path) -> Durable | None:
    """Return what was noted last, if it is whole."""
    try:
        salts, count, need, checksum = _CHECKED.unpack(mark_file(database).read_bytes())
        marked = Durable(salts, count, Need(need))
    except (FileNotFoundError, struct.error, ValueError):
        return None
    return marked if checksum == _checksum(marked) else None


def _encode(durable: Durable) -> bytes:
    return _CHECKED.pack(*durable, _checksum(durable))


def _checksum(durable: Durable) -> int:
    return zlib.crc32(durable.salts, 2 * durable.frames + durable.need)


def _decode(raw: bytes) -> Durable | None:
    """Read the shared memory's header, of which there are two copies."""
    size = frames.SHARED_HEADER.size
    first, second = raw[:size], raw[size:]
    if first != second or len(first) < size:
        return None
    _, count, salts = frames.SHARED_HEADER.unpack(first)
    return Durable(salts, count)
