"""One record as it is on disk now: its header, its pieces, its vote. Nothing is held against a witness here.

Where records lie is for who asks to know, and whether one was moved meanwhile. Any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from dataserver.index import Entry
from dataserver.known_headers import KnownHeaders
from dataserver.pieces import Span, span_of, vote
from dataserver.record import PAGE_BYTES, Header, aligned, decode_header
from dataserver.segment import Segment
from wire.digest import PIECE_BYTES, Buffer
from wire.errors import BlockDamaged
from wire.messages import BlockPart

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Record:
    """The record that the index says is at a place. All methods raise BlockDamaged where none can be read.

    Args:
        segment: the file; None if it is gone.
        entry: what the index says.
        known: headers that parts of blocks are read with.
    """

    def __init__(self, segment: Segment | None, entry: Entry, known: KnownHeaders) -> None:
        self._segment = segment
        self._entry = entry
        self._known = known

    def header(self) -> Header | None:
        """Return the header, None if it cannot be trusted."""
        entry = self._entry
        try:
            header = self._segment.read_header(entry.offset) if self._segment else None
        except OSError as error:
            _log.error("segment %08x cannot be read at %d: %s", entry.segment, entry.offset, error)
            return None
        return header if header and header.block == entry.block else None

    def vote(self, first_piece: int, piece_count: int) -> bytes:
        """Return the block's digest, with the part of these pieces (0: all from the first on) computed."""
        return self._look(first_piece, piece_count, _vote_of)

    def whole_vote(self, header: Header) -> bytes:
        """Return the digest of the bytes as a header says that they are."""
        span = span_of(header.length, 0, 0)
        return self._look_at(PAGE_BYTES, span.end, lambda data: _vote_of(header, span, data))

    def part(self, first_piece: int, piece_count: int, room: Buffer | None) -> BlockPart:
        """Return pieces, which are put in `room` if there is one and they fit."""
        if room is not None:
            part = self._part_in(memoryview(room), first_piece, piece_count)
            if part is not None:
                return part
        return self._look(first_piece, piece_count, _part_of)

    def _part_in(self, room: memoryview, first_piece: int, piece_count: int) -> BlockPart | None:
        """Read pieces into memory that begins at a page; return None if they do not fit."""
        if self._is_whole(first_piece, piece_count):
            return self._record_in(room)
        header = self._known_header()
        span = span_of(header.length, first_piece, piece_count)
        length = span.end - span.start
        if not length > 0 or aligned(length) > len(room):
            return None
        offset = self._entry.offset + PAGE_BYTES + span.start
        got = self._reading(lambda segment: segment.read_into(room[: aligned(length)], offset, header.length))
        return BlockPart(header.length, header.pieces, room[: min(got, length)])

    def _record_in(self, room: memoryview) -> BlockPart | None:
        entry = self._entry
        size = aligned(entry.length)
        if not 0 < size <= len(room):
            return None
        found, got = self._reading(lambda segment: segment.read_record_into(room[:size], entry.offset))
        header = self._trusted(found)
        if header.length != entry.length:  # the index is wrong about the length
            return None
        return BlockPart(header.length, header.pieces, room[: min(got, header.length)])

    def _is_whole(self, first_piece: int, piece_count: int) -> bool:
        return not first_piece and not 0 < piece_count * PIECE_BYTES < self._entry.length

    def _look(self, first_piece: int, piece_count: int, use: Callable[[Header, Span, Buffer], _T]) -> _T:
        """Return what `use` makes of the header and pieces. Their bytes are its own only until it returns."""
        if not self._is_whole(first_piece, piece_count):
            return self._look_at_part(first_piece, piece_count, use)
        entry = self._entry

        def use_record(raw: Buffer) -> _T | None:
            header = self._trusted(decode_header(raw, entry.segment, entry.offset))
            span = span_of(header.length, first_piece, piece_count)
            if span.end > entry.length:  # the index is wrong about the length
                return None
            return use(header, span, raw[PAGE_BYTES + span.start : PAGE_BYTES + span.end])

        found = self._look_at(0, PAGE_BYTES + entry.length, use_record)  # all at once
        return self._look_at_part(first_piece, piece_count, use) if found is None else found

    def _look_at_part(
        self, first_piece: int, piece_count: int, use: Callable[[Header, Span, Buffer], _T]
    ) -> _T:
        header = self._known_header()
        span = span_of(header.length, first_piece, piece_count)
        return self._look_at(
            PAGE_BYTES + span.start, span.end - span.start, lambda data: use(header, span, data)
        )

    def _look_at(self, start: int, length: int, use: Callable[[Buffer], _T]) -> _T:
        """Return what `use` makes of bytes of the record, `start` counted from its header."""
        entry = self._entry
        return self._reading(lambda segment: segment.look(entry.offset + start, length, use, entry.length))

    def _reading(self, read: Callable[[Segment], _T]) -> _T:
        entry = self._entry
        if self._segment is None:
            raise BlockDamaged(f"the segment of block {entry.block.hex()} is gone")
        try:
            return read(self._segment)
        except OSError as error:
            _log.error("segment %08x cannot be read at %d: %s", entry.segment, entry.offset, error)
            raise BlockDamaged(f"the bytes of block {entry.block.hex()} cannot be read: {error}") from None

    def _known_header(self) -> Header:
        """Return the header as it was when it was last read or written."""
        header = self._known.get(self._entry)
        if header is None:
            header = self._trusted(self.header())
            self._known.note(self._entry, header)
        return header

    def _trusted(self, header: Header | None) -> Header:
        if header is None or header.block != self._entry.block:
            raise BlockDamaged(f"the header of block {self._entry.block.hex()} is damaged")
        return header


def _part_of(header: Header, _span: Span, data: Buffer) -> BlockPart:
    return BlockPart(header.length, header.pieces, bytes(data))


def _vote_of(header: Header, span: Span, data: Buffer) -> bytes:
    return vote(header.length, header.digest, header.pieces, span, data)
