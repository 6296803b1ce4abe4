"""Finding the records of a segment past any damage. Reads only; decides nothing about what it finds.

Safe in any thread, also beside a store that appends to the file (it looks at the size once).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from dataserver.record import (
    FREED,
    HEADER_BYTES,
    MAGIC,
    PAGE_BYTES,
    Header,
    aligned,
    decode_header,
    record_bytes,
)

_CHUNK_BYTES = 1024 * 1024
_ZERO_PAGE = bytes(PAGE_BYTES)
_UNREADABLE_PAGE = b"\xff" * PAGE_BYTES
"""Stands for a page that the disk could not give: neither zero nor a header."""


class Found(NamedTuple):
    """A record of a live block; its payload was not looked at."""

    header: Header


class Cut(NamedTuple):
    """A record whose payload the end of the file cuts short."""

    header: Header


class Damaged(NamedTuple):
    """Bytes that are no part of a record that can be read."""

    offset: int
    length: int


class Unreadable(NamedTuple):
    """The same, but that the disk could not give some of it: there may be records."""

    offset: int
    length: int


class Unfinished(NamedTuple):
    """Bytes up to the file's end whose header was never written (payloads are written first)."""

    offset: int
    length: int


class Blank(NamedTuple):
    """Zeros up to the file's end: a hole, or written ahead of the records to come."""

    offset: int
    length: int


Finding = Found | Cut | Damaged | Unreadable | Unfinished | Blank


def scan(handle: int, segment: int, start: int) -> Iterator[Finding]:
    """Yield what a segment file holds from `start` (a record's place or a hole) on, in order.

    Args:
        handle: the open file.
        segment: the number that its headers must name.
        start: where to begin, a multiple of PAGE_BYTES.
    """
    size = os.fstat(handle).st_size
    position = start
    while position < size:
        header = _header_at(handle, segment, position)
        if header is None:
            following = _next_header(handle, segment, position, size)
            yield from _between(handle, position, following, size)
            position = following
            continue
        if position + PAGE_BYTES + header.length > size:
            yield Cut(header)
        elif header.kind != FREED:
            yield Found(header)
        position += record_bytes(header.length)


def _header_at(handle: int, segment: int, position: int) -> Header | None:
    """Return the header at a place, None if none can be trusted or read."""
    try:
        return decode_header(os.pread(handle, HEADER_BYTES, position), segment, position)
    except OSError:
        return None


def _next_header(handle: int, segment: int, position: int, size: int) -> int:
    """Return the place of the first good header after `position`, or `size` rounded up."""
    for start, chunk in _data_chunks(handle, position, size):
        for at in range(0, len(chunk), PAGE_BYTES):
            if (
                chunk.startswith(MAGIC, at)
                and start + at > position
                and decode_header(chunk[at : at + PAGE_BYTES], segment, start + at) is not None
            ):
                return start + at
    return aligned(size)


def _between(handle: int, start: int, end: int, size: int) -> Iterator[Finding]:
    """Yield what lies between two records, or past the last; nothing for zeros between two."""
    first = last = -1
    is_read = True
    for position, chunk in _data_chunks(handle, start, min(end, size)):
        is_read = is_read and chunk is not _UNREADABLE_PAGE
        for at in range(0, len(chunk), PAGE_BYTES):
            page = chunk[at : at + PAGE_BYTES]
            if page != _ZERO_PAGE[: len(page)]:
                first = position + at if first < 0 else first
                last = position + at
    if first < 0:
        if end >= size:
            yield Blank(start, size - start)
        return
    if not is_read:
        yield Unreadable(first, min(last + PAGE_BYTES, size) - first)
    elif end >= size and first > start:
        yield Unfinished(start, size - start)
    else:
        yield Damaged(first, min(last + PAGE_BYTES, size) - first)


def _data_chunks(handle: int, position: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield a range of a file in chunks of whole pages, holes left out."""
    while position < end:
        try:
            data = os.lseek(handle, position, os.SEEK_DATA)
        except OSError:
            return
        position = max(position, data // PAGE_BYTES * PAGE_BYTES)
        chunk = _chunk_at(handle, min(_CHUNK_BYTES, end - position), position)
        if not chunk or position >= end:
            return
        yield position, chunk
        position += aligned(len(chunk))


def _chunk_at(handle: int, length: int, position: int) -> bytes:
    """Return what can be read at a place, or a page if that is all; _UNREADABLE_PAGE if nothing can."""
    for wanted in (length, min(length, PAGE_BYTES)):
        with suppress(OSError):
            return os.pread(handle, wanted, position)
    return _UNREADABLE_PAGE
