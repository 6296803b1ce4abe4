"""One segment file: records appended, read, freed. I/O without decisions.

Appends must come from one thread at a time (the store's lock); reads, frees and syncs from any.
The file is closed when the last reference goes, so that a reader never meets a closed descriptor.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from pathlib import Path
from typing import ClassVar

from dataserver.durable import punch_hole, sync_directory, write_all
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

DIRECT_BYTES = 256 * 1024
"""Longer payloads go past the page cache, in and out: see docs/decisions/0003-segments-not-files.md."""


class DirectFile:
    """A file written past the page cache, through one aligned buffer. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open an existing file. Raises OSError (EINVAL where the file system cannot do it)."""
        self._handle = -1
        self._buffer = mmap.mmap(-1, BLOCK_BYTES)
        self._view = memoryview(self._buffer)
        self._handle = os.open(path, os.O_RDWR | os.O_DIRECT)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def write(self, data: Buffer, offset: int) -> None:
        """Write a block's bytes at a page's offset, zeros after them up to a whole page. Raises OSError."""
        size = aligned(len(data))
        self._view[: len(data)] = data
        self._view[len(data) : size] = bytes(size - len(data))
        write_all(self._handle, self._view[:size], offset)


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

    def read(self, offset: int, length: int) -> bytes:
        """Return at most a block's bytes from a page's offset on, fewer at the file's end. Raises OSError."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = mmap.mmap(-1, BLOCK_BYTES)
        try:
            with memoryview(buffer) as view, view[: aligned(length)] as wanted:
                got = os.preadv(self._handle, [wanted], offset)
                return bytes(wanted[: min(got, length)])
        finally:
            self._buffers.append(buffer)


class Segment:
    """An open segment file; `end` is where the next record goes, below `durable_to` all is on disk."""

    def __init__(self, path: Path, number: int, *, writable: bool = True) -> None:
        self.path = path
        self.number = number
        self._handle = -1
        self._direct: DirectFile | None = None
        self._handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        head = decode_head(os.pread(self._handle, PAGE_BYTES, 0))
        self.identity = head.identity if head and head.number == number else b""
        self.end = max(PAGE_BYTES, aligned(self.size()))
        self.durable_to = PAGE_BYTES
        self._may_be_direct = writable
        self._reader = self._open_reader()

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

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

    def append(self, block: bytes, digest: bytes, pieces: bytes, data: Buffer) -> int:
        """Write a record at the end; return its offset.

        The payload goes first: a header that can be read means that its write was complete (only a power
        loss may keep the header and lose bytes). After an OSError the file is as before.
        """
        offset = self.end
        header = encode_header(Header(LIVE, block, len(data), digest, pieces, self.number, offset))
        try:
            if not self._append_direct(data, offset + PAGE_BYTES):
                write_all(self._handle, data, offset + PAGE_BYTES)
            write_all(self._handle, header, offset)
        except OSError:
            os.ftruncate(self._handle, offset)
            raise
        self.end = offset + record_bytes(len(data))
        return offset

    def _append_direct(self, data: Buffer, offset: int) -> bool:
        """Write a long payload past the page cache; False, with nothing done, where that cannot be."""
        if len(data) < DIRECT_BYTES or not self._may_be_direct:
            return False
        try:
            if self._direct is None:
                self._direct = DirectFile(self.path)
            self._direct.write(data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._may_be_direct = False
            return False
        return True

    def seal(self) -> None:
        """Say that nothing will be appended any more."""
        self._direct = None
        self._may_be_direct = False

    def cut(self, offset: int) -> None:
        """Take an unfinished write at the end off."""
        os.ftruncate(self._handle, offset)
        self.end = offset

    def read_header(self, offset: int) -> Header | None:
        """Return the header at `offset`, or None if none can be trusted. Raises OSError."""
        return decode_header(os.pread(self._handle, HEADER_BYTES, offset), self.number, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of the file from `offset`; fewer where it ends. Raises OSError."""
        if self._reader and DIRECT_BYTES <= length <= BLOCK_BYTES and not offset % PAGE_BYTES:
            return self._reader.read(offset, length)
        return os.pread(self._handle, length, offset)

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


def segment_name(number: int) -> str:
    """Return a segment's file name."""
    return f"{number:08x}.seg"


def segment_paths(directory: Path) -> dict[int, Path]:
    """Return the segment files of a directory by number, in order; other files are left out."""
    found: dict[int, Path] = {}
    for path in sorted(directory.glob("*.seg")):
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
