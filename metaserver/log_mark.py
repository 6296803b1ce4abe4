"""How far the log was durable when that was last waited for: a small file beside the database.

SQLite takes a damaged frame of its log for the end that a crash left, and forgets all commits behind it. So
after each sync of the log it is noted which log that was (its salts) and how many frames were committed; one
that has fewer at the next start has lost what was acknowledged, and the start is refused. The note itself is
not synced: a power loss leaves an older one, which asks for less. A log that is gone, or was begun anew, is
not judged. Sources: https://www.sqlite.org/fileformat2.html and https://www.sqlite.org/walformat.html (the
shared memory). Threading: `look` and `keep` in one thread at a time; all else before and after.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from metaserver import pages
from wire.config import ConfigError

SUFFIX = "-mark"

logger = logging.getLogger("metaserver")

_INDEX = struct.Struct("=12x2xH I 12x 8s 8x")
"""The header of the shared memory, in this machine's byte order: page size, frames committed, salts."""
_CHECKED = struct.Struct("<8sII")


class Durable(NamedTuple):
    """Which log, and how many of its frames."""

    salts: bytes
    frames: int


def mark_file(database: Path) -> Path:
    """Return where the mark of a database's log is."""
    return database.with_name(database.name + SUFFIX)


def _shared_file(database: Path) -> Path:
    return database.with_name(database.name + "-shm")


class LogMark:
    """The mark of one open database. Its descriptors stay open until the database is closed.

    To close one of the shared memory would drop the locks that SQLite has on it.
    """

    def __init__(self, database: Path) -> None:
        self._shared_path = _shared_file(database)
        self._path = mark_file(database)
        self._shared = self._mark = -1
        self._failing = False

    def look(self) -> Durable | None:
        """Return what is committed now; None if there is no log, or it is being changed at this moment."""
        if self._shared < 0:
            try:
                self._shared = os.open(self._shared_path, os.O_RDONLY)
            except FileNotFoundError:
                return None
        return _decode(os.pread(self._shared, 2 * _INDEX.size, 0))

    def keep(self, durable: Durable | None) -> None:
        """Note what was committed before a sync that has ended since.

        Where that cannot be written, the mark stays as it was, and asks for less.
        """
        if durable is None or not durable.frames:
            return
        salts, frames = durable
        try:
            if self._mark < 0:
                self._mark = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            os.pwrite(self._mark, _CHECKED.pack(salts, frames, zlib.crc32(salts, frames)), 0)
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.warning("how far the log is durable cannot be noted: %s", error)
            self._failing = True

    def close(self) -> None:
        """Let go, after the database was closed."""
        for handle in (self._shared, self._mark):
            if handle >= 0:
                os.close(handle)
        self._shared = self._mark = -1


def refuse_damaged_log(database: Path) -> None:
    """Refuse a log that ends before what was durable of it. This process must not have the database open.

    It is looked at read-only: the end of another connection would move the rest into the database and delete
    the log, and nobody would ever know.

    Raises:
        ConfigError: it does.
        sqlite3.Error: the database cannot be read.
    """
    with closing(pages.connect(database, read_only=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        lost = _lost_frames(database)
    if lost:
        raise ConfigError(
            f"{database}-wal is damaged: {lost} of its last pages, which were durable, are lost; "
            f"{pages.ADVICE}"
        )


def _lost_frames(database: Path) -> int:
    """Return how many durable frames the log lacks, as SQLite has just read it."""
    try:
        salts, frames, checksum = _CHECKED.unpack(mark_file(database).read_bytes())
        found = _decode(_shared_file(database).read_bytes()[: 2 * _INDEX.size])
    except (FileNotFoundError, struct.error):
        return 0
    if found is None or found.salts != salts or checksum != zlib.crc32(salts, frames):
        return 0
    return max(0, int(frames) - found.frames)


def _decode(raw: bytes) -> Durable | None:
    """Read the shared memory's header, of which there are two copies."""
    first, second = raw[: _INDEX.size], raw[_INDEX.size :]
    if first != second or len(first) < _INDEX.size:
        return None
    _, frames, salts = _INDEX.unpack(first)
    return Durable(salts, frames)
