"""Which bytes of a block are asked for, and the digests after looking at them. Pure; safe in any thread."""

from __future__ import annotations

from typing import NamedTuple

from wire.digest import (
    DIGEST_BYTES,
    PIECE_BYTES,
    Buffer,
    digest_of_list,
    piece_count,
    piece_digest,
    piece_digests,
)
from wire.errors import BadRequest


class Span(NamedTuple):
    """A run of pieces of a block: where its bytes begin and end in the block."""

    first_piece: int
    start: int
    end: int


def span_of(length: int, first_piece: int, count: int) -> Span:
    """Return the bytes of `count` pieces (0: all) from `first_piece` on; what lies past the end is left out.

    Raises:
        BadRequest: a negative number.
    """
    if first_piece < 0 or count < 0:
        raise BadRequest(f"pieces {first_piece}+{count}: neither may be negative")
    first = min(first_piece, piece_count(length))
    end = length if count == 0 else min(length, (first + count) * PIECE_BYTES)
    return Span(first, min(length, first * PIECE_BYTES), end)


def refreshed_digests(length: int, recorded: bytes, span: Span, data: Buffer) -> bytes:
    """Return the recorded piece digests with those of the span computed from `data`.

    Args:
        length: the block's length in bytes; a block of one piece has an empty list.
        recorded: the joined digests that the record holds.
        span: which pieces `data` are.
        data: the bytes as they are now; a piece that the file's end cuts off gets a digest of zeros.
    """
    if length <= PIECE_BYTES:
        return b""
    now = piece_digests(data) or (piece_digest(data) if len(data) else b"")
    now = now.ljust(piece_count(span.end - span.start) * DIGEST_BYTES, b"\0")
    at = span.first_piece * DIGEST_BYTES
    return recorded[:at] + now + recorded[at + len(now) :]


def vote(length: int, digest: bytes, recorded: bytes, span: Span, data: Buffer) -> bytes:
    """Return a block's digest with the span's part computed from `data` (the rest from the record)."""
    if length <= PIECE_BYTES:
        return digest if span.start == span.end and length else piece_digest(data)
    return digest_of_list(refreshed_digests(length, recorded, span, data))
