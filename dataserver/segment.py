"""One segment file: records appended, read, freed. I/O without decisions.

Appends must come from one thread at a time (the store's lock); all else from any.
The file is closed when the last reference goes, so that a reader never meets a closed descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

from dataserver.durable import count_links, punch_hole, write_all, write_pages
from dataserver.record import (
    FREED,
    HEADER_BYTES,
    LIVE,
    PAGE_BYTES,
    Header,
    SegmentHead,
    aligned,
    decode_head,
    decode_header,
    encode_head,
    encode_header,
    record_bytes,
)
from wire.digest import BLOCK_BYTES, Buffer
from wire.directories import sync_directory

T = TypeVar("T")

RECORD_BYTES = PAGE_BYTES + BLOCK_BYTES
"""The longest record."""
DIRECT_BYTES = 256 * 1024
"""Longer payloads, and parts of them, go past the page cache, in and out: see docs/decisions/0003."""
AHEAD_BYTES = 2 * 1024 * 1024
"""How far past the end zeros are written, where records are made durable one by one."""
_ZEROS_BYTES = 256 * 1024
_ZEROS = mmap.mmap(-1, _ZEROS_BYTES)  # aligned, for O_DIRECT
_pages: list[mmap.mmap] = []
"""Aligned pages that nobody uses now; append and pop are atomic."""


class DirectFile:
    """A file written past the page cache, through one aligned buffer. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises OSError (EINVAL where the file system cannot do it)."""
        self._handle = -1
        self._buffer = mmap.mmap(-1, RECORD_BYTES)
        self._view = memoryview(self._buffer)
        self._handle = os.open(path, os.O_RDWR | os.O_DIRECT)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def fileno(self) -> int:
        return self._handle

    def write(self, header: bytes, data: Buffer, offset: int) -> None:
        """Write a record in one go, zeros after its bytes up to a whole page. Raises OSError."""
        end = PAGE_BYTES + len(data)
        size = aligned(end)
        self._view[:PAGE_BYTES] = header
        if _is_aligned(data) and os.pwritev(self._handle, [self._view[:PAGE_BYTES], data], offset) == end:
            return
        self._view[PAGE_BYTES:end] = data
        self._view[end:size] = bytes(size - end)
        write_all(self._handle, self._view[:size], offset)


def _is_aligned(data: Buffer) -> bool:
    """Tell whether the disk can take bytes from where they are: they are whole pages, as lent memory is."""
    if type(data) is not memoryview or data.readonly or len(data) % PAGE_BYTES:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % PAGE_BYTES == 0


class DirectReader:
    """A file read past the page cache, so that a vote is on what the disk has. Any thread."""

    _buffers: ClassVar[list[mmap.mmap]] = []
    """Aligned buffers that nobody uses now; append and pop are atomic."""

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises OSError (EINVAL where the file system cannot do it)."""
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def fileno(self) -> int:
        return self._handle

    @contextmanager
    def lend(self, offset: int, length: int) -> Iterator[memoryview]:
        """Lend at most a record's bytes from a page's offset on, fewer at the file's end. Raises OSError."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = mmap.mmap(-1, RECORD_BYTES)
        try:
            with memoryview(buffer) as view, view[: aligned(length)] as wanted:
                got = os.preadv(self._handle, [wanted], offset)
                with wanted[: min(got, length)] as lent:
                    yield lent
        finally:
            self._buffers.append(buffer)


class Segment:
    """An open segment file; `end` is where the next record goes, below `durable_to` all is on disk.

    From `end` to `ready_to` the file holds zeros that are on disk: a sync of records there changes no
    metadata of the file system. Only who holds `_tail` writes past `ready_to`, moves it or cuts the file.
    """

    def __init__(self, path: Path, number: int, *, writable: bool = True) -> None:
        self.path = path
        self.number = number
        self._handle = -1
        self._direct: DirectFile | None = None
        self._handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self._must_have_name = count_links(self._handle) > 0  # not all file systems count names
        head = self._read_head()
        self.identity = head.identity if head and head.number == number else b""
        self.end = max(PAGE_BYTES, aligned(self.size()))
        self.durable_to = PAGE_BYTES
        self.unread_from: int | None = None
        """From here on there may be records that the disk could not give when it was scanned."""
        self.damaged_at: list[int] = []
        """Where damaged regions begin that the scan found."""
        self.ready_to = self.end
        self._tail = threading.RLock()
        self._is_sealed = not writable
        self._may_be_direct = writable
        self._reader = self._open_reader()

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def _read_head(self) -> SegmentHead | None:
        try:
            return decode_head(os.pread(self._handle, PAGE_BYTES, 0))
        except OSError:
            return None

    def _open_reader(self) -> DirectReader | None:
        try:
            return DirectReader(self.path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return None

    def fileno(self) -> int:
        return self._handle

    def size(self) -> int:
        """Return the file's size now, in bytes."""
        return os.fstat(self._handle).st_size

    def append(self, block: bytes, digest: bytes, pieces: bytes, data: Buffer) -> Header:
        """Write a record at the end; return its header.

        The payload goes first, or all in one direct write, which a kill does not divide: a header that can
        be read means that its write was complete (only a power loss may keep the header and lose bytes).
        After an OSError the file is as before.
        """
        offset = self.end
        header = Header(LIVE, block, len(data), digest, pieces, self.number, offset)
        page = encode_header(header)
        end = offset + record_bytes(len(data))
        if end <= self.ready_to:
            self._write(page, data, offset)
        else:
            with self._tail:
                self._write(page, data, offset)
                self.ready_to = max(self.ready_to, end)
        self.end = end
        return header

    def _write(self, header: bytes, data: Buffer, offset: int) -> None:
        try:
            if self._write_direct(header, data, offset):
                return
            write_pages(self._handle, data, offset + PAGE_BYTES)
            write_all(self._handle, header, offset)
        except OSError:
            self.cut(offset)
            raise

    def _write_direct(self, header: bytes, data: Buffer, offset: int) -> bool:
        """Write a long record past the page cache; False, with nothing done, where that cannot be."""
        if len(data) < DIRECT_BYTES or not self._may_be_direct:
            return False
        try:
            self._direct_file().write(header, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._may_be_direct = False
            return False
        return True

    def _direct_file(self) -> DirectFile:
        if self._direct is None:
            self._direct = DirectFile(self.path)
        return self._direct

    def write_ahead(self, limit: int) -> None:
        """Write zeros past the end, AHEAD_BYTES but not past `limit`.

        Raises OSError: the file is as before.
        """
        with self._tail:
            start, end = self.ready_to, min(self.end + AHEAD_BYTES, limit // PAGE_BYTES * PAGE_BYTES)
            if self._is_sealed or end <= start:
                return
            try:
                for offset in range(start, end, _ZEROS_BYTES):
                    self._write_zeros(memoryview(_ZEROS)[: end - offset], offset)
            except OSError:
                os.ftruncate(self._handle, start)
                raise
            self.ready_to = end

    def _write_zeros(self, zeros: memoryview, offset: int) -> None:
        """Write past the page cache, where that can be."""
        try:
            handle = self._direct_file().fileno()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            handle = self._handle
        write_all(handle, zeros, offset)

    def seal(self) -> None:
        """Say that nothing will be appended any more; the zeros past the end are given back."""
        with self._tail:
            self._direct = None
            self._may_be_direct = False
            self._is_sealed = True
            if self.ready_to > self.end:
                self.cut(self.end)

    def cut(self, offset: int) -> None:
        """Take what lies from `offset` on off: zeros, or an unfinished write at the end."""
        with self._tail:
            os.ftruncate(self._handle, offset)
            self.end = self.ready_to = offset

    def begin_at(self, offset: int) -> None:
        """Say that nothing but zeros lies from `offset` on, and that the next record goes there."""
        self.end, self.ready_to = offset, max(offset, self.size() // PAGE_BYTES * PAGE_BYTES)

    def read_header(self, offset: int) -> Header | None:
        """Return the header at `offset`, or None if none can be trusted. Raises OSError."""
        return decode_header(os.pread(self._handle, HEADER_BYTES, offset), self.number, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of the file from `offset`; fewer where it ends. Raises OSError."""
        return self.look(offset, length, bytes, length)

    def read_what_can_be(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return the same with zeros for pages that the disk cannot read, and how many these are."""
        pages, lost = [], 0
        for start in range(offset, offset + length, PAGE_BYTES):
            wanted = min(PAGE_BYTES, offset + length - start)
            try:
                pages.append(os.pread(self._handle, wanted, start))
            except OSError:
                pages.append(bytes(wanted))
                lost += 1
        return b"".join(pages), lost

    def look(self, offset: int, length: int, use: Callable[[Buffer], T], payload: int) -> T:
        """Return what `use` makes of the bytes from `offset`, which are its own only until it returns.

        There are fewer where the file ends. `payload` is how long that of their record is. Raises OSError.
        """
        is_direct = payload >= DIRECT_BYTES and 0 < length <= RECORD_BYTES and not offset % PAGE_BYTES
        if self._reader and is_direct:
            with self._reader.lend(offset, length) as lent:
                return use(lent)
        return use(os.pread(self._handle, length, offset))

    def read_into(self, room: memoryview, offset: int, payload: int) -> int:
        """Read whole pages from a page's offset on; return how many bytes came. `room` begins at a page.

        `payload` is how long that of their record is. Raises OSError.
        """
        return os.preadv(self._reading_handle(payload), [room], offset)

    def read_record_into(self, room: memoryview, offset: int) -> tuple[Header | None, int]:
        """Read a header, and what follows it into `room`, at once; return it, and how many bytes followed.

        The header is None if it cannot be trusted. Raises OSError.
        """
        page = _take_page()
        try:
            got = os.preadv(self._reading_handle(len(room)), [page, room], offset)
            return decode_header(memoryview(page), self.number, offset), max(0, got - PAGE_BYTES)
        finally:
            _pages.append(page)

    def _reading_handle(self, payload: int) -> int:
        """Return the descriptor by which a payload of this length is read."""
        return self._reader.fileno() if self._reader and payload >= DIRECT_BYTES else self._handle

    def write_again(self, header: Header) -> None:
        """Have the kernel write a record that it may have, and not the disk: as after a failed sync.

        It keeps none that was written past the page cache. Raises OSError.
        """
        if self._reader and header.length >= DIRECT_BYTES:
            return
        raw = os.pread(self._handle, record_bytes(header.length), header.offset)
        write_all(self._handle, raw, header.offset)

    def free(self, offset: int, length: int) -> None:
        """Give a range of whole records back to the file system."""
        if punch_hole(self._handle, offset, length):
            return
        position = offset
        while position < offset + length:
            header = self.read_header(position)
            if header is None:
                position += PAGE_BYTES
                continue
            write_all(self._handle, encode_header(header._replace(kind=FREED)), position)
            position += record_bytes(header.length)

    def holes(self) -> list[tuple[int, int]]:
        """Return the ranges (start, end) that have no bytes on disk, as far as the file system tells."""
        found: list[tuple[int, int]] = []
        position, size = 0, self.size()
        while position < size:
            hole = os.lseek(self._handle, position, os.SEEK_HOLE)
            if hole >= size:
                break
            try:
                position = os.lseek(self._handle, hole, os.SEEK_DATA)
            except OSError:
                position = size
            found.append((hole, position))
        return found

    def sync(self) -> None:
        """Make everything written so far durable. Raises OSError."""
        os.fdatasync(self._handle)
        self.require_name()

    def require_name(self) -> None:
        """Raise OSError if somebody else removed the file: no start would find what is in it."""
        if self._must_have_name and count_links(self._handle) == 0:
            raise OSError(errno.ENOENT, f"{self.path.name} was removed")

    def remove(self) -> None:
        """Remove the file, in which nothing is left. It may still be read and synced. Raises OSError."""
        self._must_have_name = False
        self.path.unlink()


def _take_page() -> mmap.mmap:
    try:
        return _pages.pop()
    except IndexError:
        return mmap.mmap(-1, PAGE_BYTES)


def segment_name(number: int) -> str:
    """Return a segment's file name."""
    return f"{number:08x}.seg"


def segment_paths(directory: Path) -> dict[int, Path]:
    """Return the segment files of a directory by number, in order; other files are left out.

    Raises:
        OSError: it cannot be listed, which is not to be taken for an empty one; one that is missing is empty.
    """
    found: dict[int, Path] = {}
    try:
        listed = [path for path in directory.iterdir() if path.suffix == ".seg"]
    except FileNotFoundError:
        return found
    for path in listed:
        try:
            number = int(path.stem, 16)
        except ValueError:
            continue
        if path.name == segment_name(number):
            found[number] = path
    return dict(sorted(found.items()))


def create_segment(directory: Path, number: int) -> Segment:
    """Make a new segment file, durable itself and in its directory. Raises OSError."""
    path = directory / segment_name(number)
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        file.write(encode_head(SegmentHead(number, secrets.token_bytes(16))))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(directory)
    return Segment(path, number)
