"""The ring of blocks: the file in which a mediator gives small blocks to a data server, without a call.

The data server owns it (wire.ring_head), and a mediator of the same machine writes its slots. A block's
record is at the end of its slot, and its bytes right before it, so that one write(2) has written the bytes
before the record: who finds the record, finds them too. Formats only; the rules are in mediator.block_rings
and dataserver.block_rings, and in docs/decisions/0032-puts-without-a-call.md. Pure; safe in any thread.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from wire.ring_head import HEAD_BYTES

SLOTS = 64
MOST_BYTES = 16 * 1024
"""A longer block is put by a call: what a call costs is little beside it."""

_RECORD = struct.Struct("<QQI16s32s")
_CHECKSUM = struct.Struct("<I")
RECORD_BYTES = _CHECKSUM.size + _RECORD.size
SLOT_BYTES = MOST_BYTES + RECORD_BYTES
RING_BYTES = HEAD_BYTES + SLOTS * SLOT_BYTES


class GivenBlock(NamedTuple):
    """One block of a `term`: its bytes are the `length` before the record."""

    number: int
    term: int
    length: int
    block: bytes
    digest: bytes


def record_offset(number: int) -> int:
    """Return where in the file the record of the block of this number is, in bytes."""
    return HEAD_BYTES + (number % SLOTS + 1) * SLOT_BYTES - RECORD_BYTES


def pack_record(given: GivenBlock) -> bytes:
    """Return the bytes of a record."""
    packed = _RECORD.pack(*given)
    return _CHECKSUM.pack(zlib.crc32(packed)) + packed


def unpack_record(data: bytes, number: int, term: int) -> GivenBlock | None:
    """Return the record of this number and term that some bytes are; None if they are none."""
    if len(data) < RECORD_BYTES:
        return None
    (checksum,) = _CHECKSUM.unpack_from(data)
    if zlib.crc32(data[_CHECKSUM.size : RECORD_BYTES]) != checksum:
        return None
    given = GivenBlock._make(_RECORD.unpack_from(data, _CHECKSUM.size))
    is_of_this = (given.number, given.term) == (number, term)
    return given if is_of_this and given.length <= MOST_BYTES else None
