"""The checksum that each page of the database must have now: so that an older version of a page is noticed.

A file beside the database. It is made durable whenever the database is, before SQLite may overwrite the log
(docs/decisions/0012-checksums-of-pages.md): pages whose entries a crash left behind are still in the log, and
are read from there until they are written anew. It must not judge anything else about a page. Threading: any
thread; SQLite's locks see to it that no page is read and written at the same time.

    page 0      the format
    page k      ENTRIES checksums (0: not known), and the CRC-32 of these
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from array import array
from contextlib import suppress
from pathlib import Path

from wire.directories import sync_directory

SUFFIX = "-sums"
PAGE_BYTES = 4096
ENTRIES = PAGE_BYTES // 4 - 1
HEADER = b"quorumfs sums 1\n".ljust(PAGE_BYTES, b"\0")

_CHECKSUM = struct.Struct("<I")

logger = logging.getLogger("metaserver")


def sums_file(database: Path) -> Path:
    """Return where the checksums of a database are."""
    return database.with_name(database.name + SUFFIX)


def begin(database: Path) -> None:
    """Make the file if it is not there: no page is known then. The name is the caller's to make durable."""
    path = sums_file(database)
    if not path.exists():
        path.write_bytes(HEADER)
        _sync(path)


class Sums:
    """The checksums of one open database."""

    def __init__(self, database: Path) -> None:
        """Read what is known; a damaged part is not known. Raises OSError."""
        self._path = sums_file(database)
        self._known = array("I")
        self._changed: set[int] = set()
        self.older: set[int] = set()
        """The pages that were met in an older version."""
        content = self._path.read_bytes()
        if content[:PAGE_BYTES] != HEADER:
            logger.warning("%s is damaged: older versions of pages are noticed from now on only", self._path)
            self._changed.add(-1)
            content = b""
        for start in range(PAGE_BYTES, len(content), PAGE_BYTES):
            self._known.extend(self._decode(content[start : start + PAGE_BYTES]))

    def _decode(self, page: bytes) -> array[int]:
        entries = array("I", page[:-4].ljust(4 * ENTRIES, b"\0"))
        if len(page) < PAGE_BYTES or _CHECKSUM.unpack(page[-4:]) != (zlib.crc32(page[:-4]),):
            if any(page):
                logger.warning("a part of %s is damaged; it is begun anew", self._path)
            return array("I", bytes(4 * ENTRIES))
        return entries

    def note(self, number: int, checksum: int) -> None:
        """A page was written."""
        index = number - 1
        if index >= len(self._known):
            self._known.extend(array("I", bytes(4 * ENTRIES * (index // ENTRIES + 1) - 4 * len(self._known))))
        if self._known[index] != checksum:
            self._known[index] = checksum
            self._changed.add(index // ENTRIES)

    def agrees(self, number: int, checksum: int) -> bool:
        """Tell whether a page that was read is the one written last; one that is not known is from now on."""
        index = number - 1
        known = self._known[index] if index < len(self._known) else 0
        if known == checksum:
            return True
        if known:
            if number not in self.older:
                self.older.add(number)
                logger.error("page %d of the database is an older version of itself", number)
            return False
        self.note(number, checksum)
        return True

    def save(self) -> None:
        """Make it durable. Where it was removed, or there is no room, nothing is known after a restart.

        Raises OSError: the disk failed; what is there may be wrong.
        """
        parts, self._changed = self._changed, set()
        if not parts:
            return
        try:
            self._write(sorted(parts))
        except OSError as error:
            logger.warning("%s cannot be written (%s): it is begun anew", self._path, error)
            self._changed = {-1, *range(len(self._known) // ENTRIES)}
            with suppress(FileNotFoundError):  # without its directory there is none that could be wrong
                _begin_anew(self._path)

    def _write(self, parts: list[int]) -> None:
        handle = os.open(self._path, os.O_WRONLY)
        try:
            for part in parts:
                os.pwrite(handle, self._encode(part), (part + 1) * PAGE_BYTES)
            os.fdatasync(handle)
        finally:
            os.close(handle)

    def _encode(self, part: int) -> bytes:
        if part < 0:
            return HEADER
        entries = self._known[part * ENTRIES : (part + 1) * ENTRIES].tobytes()
        return entries + _CHECKSUM.pack(zlib.crc32(entries))


def _begin_anew(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, 0)
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_directory(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
