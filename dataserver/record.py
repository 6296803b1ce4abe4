"""The records of a segment file, encoded and decoded. Pure: no I/O; safe in any thread.

docs/format-dataserver.md describes every byte. A header names its own place (segment and offset): so
the copy of a segment that a user keeps as a file's contents is never taken for records of this store.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from blake3 import blake3

from wire.digest import BLOCK_BYTES, DIGEST_BYTES, PIECE_BYTES, Buffer, piece_count

PAGE_BYTES = 4096
"""Headers and payloads begin at multiples of it."""
RECORD_FORMAT = 2
MAGIC = b"QfsBlock"
SEGMENT_MAGIC = b"QfsSegmt"

LIVE, FREED = 1, 2
"""Kinds of records. A freed one is a deleted block where the file system cannot punch holes."""

_HEADER = struct.Struct(">8sHHI16sQQ32s2048s")
_HEAD = struct.Struct(">8sHxxxxxxQ16s")
_CHECKSUM_BYTES = 32
HEADER_BYTES = _HEADER.size + _CHECKSUM_BYTES
HEAD_BYTES = _HEAD.size + _CHECKSUM_BYTES


class Header(NamedTuple):
    """What a record says of itself. `offset` is the header's own place in the segment file."""

    kind: int
    block: bytes
    length: int
    digest: bytes
    pieces: bytes
    segment: int
    offset: int


class SegmentHead(NamedTuple):
    """A segment's first page: its number, and a random identity by which the index knows it again."""

    number: int
    identity: bytes


def aligned(size: int) -> int:
    """Return `size` rounded up to whole pages."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def record_bytes(length: int) -> int:
    """Return how much of a segment the record of a block of `length` bytes takes."""
    return PAGE_BYTES + aligned(length)


def encode_header(header: Header) -> bytes:
    """Return a header as its page."""
    packed = _HEADER.pack(
        MAGIC,
        RECORD_FORMAT,
        header.kind,
        header.length,
        header.block,
        header.segment,
        header.offset,
        header.digest,
        header.pieces,
    )
    return (packed + blake3(packed).digest()).ljust(PAGE_BYTES, b"\0")


def decode_header(raw: Buffer, segment: int, offset: int) -> Header | None:
    """Return the header in `raw` (at least HEADER_BYTES), or None if it is none of this very place."""
    raw = bytes(raw[:HEADER_BYTES])
    if not raw.startswith(MAGIC) or len(raw) < HEADER_BYTES:
        return None
    packed = raw[: _HEADER.size]
    if blake3(packed).digest() != raw[_HEADER.size :]:
        return None
    _, version, kind, length, block, its_segment, its_offset, digest, pieces = _HEADER.unpack(packed)
    if version != RECORD_FORMAT or kind not in (LIVE, FREED) or length > BLOCK_BYTES:
        return None
    if (its_segment, its_offset) != (segment, offset):
        return None
    used = piece_count(length) * DIGEST_BYTES if length > PIECE_BYTES else 0
    return Header(kind, block, length, digest, pieces[:used], segment, offset)


def encode_head(head: SegmentHead) -> bytes:
    """Return a segment's first page."""
    packed = _HEAD.pack(SEGMENT_MAGIC, RECORD_FORMAT, head.number, head.identity)
    return (packed + blake3(packed).digest()).ljust(PAGE_BYTES, b"\0")


def decode_head(raw: bytes) -> SegmentHead | None:
    """Return what a segment's first page says, or None if it cannot be trusted."""
    packed = raw[: _HEAD.size]
    if len(raw) < HEAD_BYTES or blake3(packed).digest() != raw[_HEAD.size : HEAD_BYTES]:
        return None
    magic, version, number, identity = _HEAD.unpack(packed)
    return SegmentHead(number, identity) if (magic, version) == (SEGMENT_MAGIC, RECORD_FORMAT) else None
