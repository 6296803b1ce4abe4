"""A checksum in every page of the database file: written with the page, compared whenever it is read.

SQLite has no checksums of pages of its own; it keeps the last bytes of each page free for them if the
file's header says so. Here the operations of SQLite's own file layer are kept, but for reading and
writing the database file: a page is stamped when it is written (by a checkpoint), and a page that is not
as it was stamped is never given to SQLite, which fails the statement with SQLITE_IOERR_DATA. The log has
checksums of SQLite's own, which SQLite compares after a restart only; here they are compared whenever a page
is read from it, by a checkpoint too (metaserver.frames).
Sources: https://www.sqlite.org/vfs.html, https://www.sqlite.org/fileformat2.html

A database with a file of sums beside it (metaserver.sums) has each page that is read compared with that too.

Every connection that writes must be opened by `connect`: other writers leave pages without a stamp.
It must not decide what becomes of a damaged database. Threading: the hooks run in the thread of the
connection, under the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sqlite3
import struct
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib.parse import quote

from metaserver import frames, log_failure
from metaserver.sums import Sums, sums_file
from wire.config import ConfigError

PAGE_BYTES = 4096
STAMP = struct.Struct(">II")
"""What ends a page: its number, and the CRC-32 of what is before, begun with its number."""
STAMPED_BYTES = PAGE_BYTES - STAMP.size
DAMAGED = 10 | 32 << 8
"""SQLITE_IOERR_DATA, which sqlite3 of Python 3.11 has no name for."""
DAMAGED_PAGES_KEPT = 1000
ADVICE = "put it back with `quorumfs restore FILE` or `quorumfs rebuild --replace`"
"""What to do about a database that is lost or damaged."""

_NAME = b"quorumfs-pages"
_OK, _IOERR, _SHORT_READ, _IOERR_SYNC = 0, 10, 10 | 2 << 8, 10 | 4 << 8
_OPEN_MAIN_DB = 0x100
_OPEN_LOG = 0x80000
_LOG_SUFFIX, _SHARED_SUFFIX = b"-wal", b"-shm"
_HEADER_READS = ((0, 100), (24, 16))
"""What SQLite reads of the header beside page 1 itself: (offset, bytes)."""

_Function = ctypes.c_void_p
_Open = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_Transfer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong)

C = TypeVar("C", bound=sqlite3.Connection)

logger = logging.getLogger("metaserver")


class _UnreadableError(Exception):
    """SQLite's own file layer could not read what a page is compared with.

    Attributes:
        result: what it returned.
    """

    def __init__(self, result: int) -> None:
        super().__init__(result)
        self.result = result


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, version 2: without the calls for mapped memory, which would go past the check."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("close", _Function),
        ("read", _Function),
        ("write", _Function),
        ("truncate", _Function),
        ("sync", _Function),
        ("others", _Function * 11),
    ]


class _FileLayer(ctypes.Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("path_bytes_max", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", _Function),
        ("others", _Function * 15),
    ]


_Close = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

_damaged: dict[bytes, set[int]] = {}
_damaged_frames: dict[bytes, set[int]] = {}
"""The frames of the log of each open database that were met damaged, from 1."""
_shared: dict[bytes, int] = {}
"""Descriptors of the shared memory beside open databases.

To close one drops the locks that SQLite has on it: only when the last connection is gone.
"""
_guard = threading.Lock()
"""Held while it changes whether this process has a database open."""
_open_files: Counter[bytes] = Counter()
"""How often this process has each database open."""
_sums: dict[bytes, Sums] = {}
"""The sums of the databases that are open and have some."""
_told = ""
"""The last failure that was logged: a disk that fails is asked ten times a second."""
_kept: list[object] = []
"""What SQLite has pointers to."""


def stamp(number: int, contents: bytes) -> bytes:
    """Return what ends page `number` (from 1), of which `contents` is the rest."""
    return STAMP.pack(number, zlib.crc32(contents, number))


@overload
def connect(path: Path, *, read_only: bool = False, **options: Any) -> sqlite3.Connection: ...


@overload
def connect(path: Path, kind: type[C], *, read_only: bool = False, **options: Any) -> C: ...


def connect(
    path: Path,
    kind: type[sqlite3.Connection] = sqlite3.Connection,
    *,
    read_only: bool = False,
    **options: Any,
) -> sqlite3.Connection:
    """Open a database whose pages are checked.

    Args:
        path: the database; it must have been made by `create`.
        kind: of connection.
        read_only: for a connection that changes nothing.
        options: of sqlite3.connect.

    Raises:
        ConfigError: this Python's SQLite cannot be reached.
        sqlite3.Error: as sqlite3.connect.
    """
    _register()
    mode = "ro" if read_only else "rw"
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}&vfs={_NAME.decode()}"
    connection: sqlite3.Connection = sqlite3.connect(uri, uri=True, factory=kind, **options)
    # A page that is written twice by one transaction would have a wrong checksum in the log until the commit.
    connection.execute("PRAGMA cache_spill = OFF")
    return connection


def create(path: Path) -> None:
    """Make an empty database with room for stamps, whole or not at all."""
    sums_file(path).unlink(missing_ok=True)  # of a database that is gone
    page = bytearray(STAMPED_BYTES)
    page[:24] = b"SQLite format 3\0" + struct.pack(">HBBBBBB", PAGE_BYTES, 1, 1, STAMP.size, 64, 32, 32)
    page[31] = 1  # the database has one page,
    page[100] = 13  # the empty leaf of the schema's table,
    page[105:107] = struct.pack(">H", STAMPED_BYTES)  # whose cells end where the stamp begins
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(page + stamp(1, bytes(page)))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def refuse_unstamped(path: Path) -> None:
    """Refuse a database without room for stamps, which an older release made. No connection may be open.

    Raises:
        ConfigError: it is of the first format.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(100)
    if header.startswith(b"SQLite format 3\0") and not header[20]:
        raise ConfigError(f"{path} has format 1, without checksums; use the release that made it")


def damaged_pages(path: Path) -> list[int]:
    """Return the numbers of pages that this process found damaged, DAMAGED_PAGES_KEPT at most."""
    return sorted(_damaged.get(os.fsencode(path.absolute()), ()))


def damaged_frames(path: Path) -> set[int]:
    """Return the frames of the log that were met damaged since it was opened: the set itself, which grows.

    What is committed behind such a frame would be lost at the next start.
    """
    return _damaged_frames.setdefault(os.fsencode(path.absolute()), set())


def is_damage(error: BaseException) -> bool:
    """Tell whether an error of SQLite says that what is stored is not what was written."""
    code = getattr(error, "sqlite_errorcode", _OK)
    return code == DAMAGED or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@cache
def _register() -> None:
    """Make the file layer known to SQLite, once a process."""
    try:
        library = ctypes.CDLL(getattr(importlib.import_module("_sqlite3"), "__file__", None))
        find, register = library.sqlite3_vfs_find, library.sqlite3_vfs_register
    except (OSError, AttributeError):
        raise ConfigError(
            "the SQLite library of this Python cannot be reached, so that pages could not be checked; "
            "use a Python whose sqlite3 module is linked with libsqlite3"
        ) from None
    find.restype = ctypes.POINTER(_FileLayer)
    usual = find(None).contents
    if usual.version < 3:
        raise ConfigError("the SQLite library of this Python is too old to check pages; use 3.35 or newer")
    ours = _FileLayer.from_buffer_copy(usual)
    ours.name = _NAME
    opened = _Open(_opener(_Open(usual.open)))
    ours.open = ctypes.cast(opened, ctypes.c_void_p).value
    _kept.extend((ours, opened))
    if register(ctypes.byref(ours), 0) != _OK:
        raise ConfigError("the SQLite library of this Python refuses to check pages")


def _opener(usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that opens a file: the usual one, after which the hooks are put in place."""
    methods: dict[tuple[bytes, int], _Methods] = {}

    def open_file(layer: int, name: int, file: int, flags: int, given: int) -> int:
        result = usual(layer, name, file, flags, given)
        if result != _OK or not flags & (_OPEN_MAIN_DB | _OPEN_LOG) or not name:
            return result
        try:
            own = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
            key = ctypes.string_at(name), own[0] or 0
            if key not in methods:
                hooked = _hooked if flags & _OPEN_MAIN_DB else _hooked_log
                methods[key] = hooked(key[0], _Methods.from_address(key[1]))
            own[0] = ctypes.addressof(methods[key])
            if flags & _OPEN_MAIN_DB:
                _opened(key[0])
        except Exception:
            return _failed("the database file could not be opened with checks")
        return result

    return open_file


def _failed(what: str) -> int:
    """Log the error that a hook met, if it is not the same again; return what SQLite is told."""
    global _told
    error = sys.exception()
    told, _told = _told, f"{what}: {error}"
    if not isinstance(error, OSError):
        logger.exception(what)
    elif told != _told:
        logger.error(_told)
    return _IOERR


def _opened(path: bytes) -> None:
    """Note that a database was opened; the first time, read its sums. Raises OSError."""
    with _guard:
        _open_files[path] += 1
        if _open_files[path] > 1:
            return
        _damaged_frames.get(path, set()).clear()
        log_failure.forget(path)
        _sums.pop(path, None)
        database = Path(os.fsdecode(path))
        if sums_file(database).exists():
            _sums[path] = Sums(database)


def _hooked(path: bytes, usual: _Methods) -> _Methods:
    """Return the database file's operations with those replaced that have to do with pages."""
    hooks = {
        "close": _Close(_closer(path, _Close(usual.close))),
        "read": _Transfer(_reader(path, _Transfer(usual.read))),
        "write": _Transfer(_writer(path, _Transfer(usual.write))),
        "sync": _Sync(_syncer(path, _Sync(usual.sync))),
    }
    return _with_hooks(usual, hooks)


def _hooked_log(log: bytes, usual: _Methods) -> _Methods:
    """Return the log's operations; only reading and making durable are others."""
    path = log.removesuffix(_LOG_SUFFIX)
    hooks = {
        "read": _Transfer(_log_reader(path, _Transfer(usual.read))),
        "sync": _Sync(_log_syncer(path, _Sync(usual.sync))),
    }
    return _with_hooks(usual, hooks)


def _with_hooks(usual: _Methods, hooks: dict[str, Any]) -> _Methods:
    ours = _Methods.from_buffer_copy(usual)
    ours.version = min(usual.version, 2)
    for name, hook in hooks.items():
        setattr(ours, name, ctypes.cast(hook, ctypes.c_void_p).value)
    _kept.extend(hooks.values())
    return ours


def _closer(path: bytes, usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that closes, which may be called while the interpreter ends."""
    open_files, guard, shared, close_descriptor = _open_files, _guard, _shared, os.close

    def close(file: int) -> int:
        with guard:
            open_files[path] -= 1
            if not open_files[path] and path in shared:
                close_descriptor(shared.pop(path))
        return usual(file)

    return close


def _syncer(path: bytes, usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that makes the file durable: its sums too, before SQLite relies on it."""

    def sync(file: int, flags: int) -> int:
        try:
            result = usual(file, flags)
            if result == _OK and (sums := _sums.get(path)) is not None:
                sums.save()
            return result
        except Exception:
            return _failed("the checksums of the pages could not be made durable")

    return sync


def _log_syncer(path: bytes, usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that makes the log durable: after one that failed it fails."""
    database = Path(os.fsdecode(path))

    def sync(file: int, flags: int) -> int:
        try:
            if log_failure.reason(path) is not None:
                return _IOERR_SYNC
            result = usual(file, flags)
            if result != _OK:
                log_failure.note(database, "SQLite could not sync it")
            return result
        except Exception:
            return _failed("the log could not be made durable")

    return sync


def _reader(path: bytes, usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that reads: only a page as it was stamped, or a part of the header."""
    string_at, crc32, unpack = ctypes.string_at, zlib.crc32, STAMP.unpack

    def read(file: int, buffer: int, length: int, offset: int) -> int:
        try:
            result = usual(file, buffer, length, offset)
            if (offset, length) in _HEADER_READS:
                return result
            number, within = divmod(offset, PAGE_BYTES)
            number += 1
            if result == _OK and length == PAGE_BYTES and not within:
                page = string_at(buffer, PAGE_BYTES)
                checksum = crc32(page[:STAMPED_BYTES], number)
                if unpack(page[STAMPED_BYTES:]) == (number, checksum):
                    sums = _sums.get(path)
                    if sums is None or sums.agrees(number, checksum):
                        return _OK
            elif result not in (_OK, _SHORT_READ) or (result == _SHORT_READ and not offset):
                return result
            _note(path, number)
            return DAMAGED
        except Exception:
            return _failed("a page could not be compared")

    return read


def _log_reader(path: bytes, usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that reads the log: a page by itself only as it was written.

    Whole frames, and headers, are read while SQLite looks through the log, and compares them itself.
    """
    string_at = ctypes.string_at

    def read_bytes(file: int, length: int, offset: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        result = usual(file, ctypes.addressof(buffer), length, offset)
        if result not in (_OK, _SHORT_READ):
            raise _UnreadableError(result)
        return buffer.raw if result == _OK else b""

    def is_as_written(file: int, page: bytes, start: int) -> bool:
        before = start - frames.FRAME_BYTES + 16 if start > frames.LOG_HEADER_BYTES else start - 8
        header, sums = read_bytes(file, frames.FRAME_HEADER_BYTES, start), read_bytes(file, 8, before)
        big_endian, _, salts = frames.SHARED_HEADER.unpack(read_shared(path, frames.SHARED_HEADER.size, 0))
        number = read_shared(path, 4, frames.number_offset(start // frames.FRAME_BYTES + 1))
        log = frames.LogHeader(salts, (0, 0), big_endian)
        return bool(header and sums) and frames.is_as_written(
            page, int.from_bytes(number, sys.byteorder), header, sums, log
        )

    def read(file: int, buffer: int, length: int, offset: int) -> int:
        try:
            result = usual(file, buffer, length, offset)
            if length != PAGE_BYTES or result not in (_OK, _SHORT_READ):
                return result
            start = offset - frames.FRAME_HEADER_BYTES
            if result == _OK and is_as_written(file, string_at(buffer, PAGE_BYTES), start):
                return _OK
            _note_frame(path, start // frames.FRAME_BYTES + 1)
            return DAMAGED
        except _UnreadableError as error:
            return error.result  # the disk fails: that says nothing about the page
        except Exception:
            return _failed("a page of the log could not be compared")

    return read


def read_shared(path: bytes, length: int, offset: int) -> bytes:
    """Return a part of the memory that connections share, which stays open while one does. Raises OSError."""
    with _guard:
        if path not in _shared:
            _shared[path] = os.open(path + _SHARED_SUFFIX, os.O_RDONLY)
        return os.pread(_shared[path], length, offset)


def _note_frame(path: bytes, number: int) -> None:
    """Remember a damaged frame of the log."""
    known = _damaged_frames.setdefault(path, set())
    if number not in known and len(known) < DAMAGED_PAGES_KEPT:
        known.add(number)
        logger.error(
            "page %d of the log is not what was written: it is not copied into the database, and nothing "
            "more is committed behind it; %s",
            number,
            ADVICE,
        )


def _writer(path: bytes, usual: Callable[..., int]) -> Callable[..., int]:
    """Return the operation that writes: a page gets its stamp, anything else is refused."""
    string_at, crc32, pack_into = ctypes.string_at, zlib.crc32, STAMP.pack_into
    stamp_type = ctypes.c_char * STAMP.size

    def write(file: int, buffer: int, length: int, offset: int) -> int:
        try:
            number, within = divmod(offset, PAGE_BYTES)
            if length != PAGE_BYTES or within:
                return _IOERR
            number += 1
            checksum = crc32(string_at(buffer, STAMPED_BYTES), number)
            pack_into(stamp_type.from_address(buffer + STAMPED_BYTES), 0, number, checksum)
            result = usual(file, buffer, length, offset)
            if result == _OK and (sums := _sums.get(path)) is not None:
                sums.note(number, checksum)
            return result
        except Exception:
            return _failed("a page could not be written with its checksum")

    return write


def _note(path: bytes, number: int) -> None:
    """Remember a damaged page."""
    known = _damaged.setdefault(path, set())
    if len(known) < DAMAGED_PAGES_KEPT:
        known.add(number)
