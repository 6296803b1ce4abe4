"""The ring of removals: the file in which a mount that is alone tells what it has removed, without a call.

The metadata server makes it and writes its head, the mount of the same machine its slots: removal number S is
in slot S modulo SLOTS. Each is written by one system call and has a checksum, so that a reader sees a whole
one or none. The file is in shared memory (tmpfs): it survives the kill of any process, waits for no disk, and
goes with the power, as any change does that no fsync made durable. Formats only; the rules are in
fusefs.removal_ring and metaserver.removals, and in docs/decisions/0031-removals-without-a-call.md. Pure; safe
in any thread.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

MAGIC = b"qfsring1"
SLOTS = 512
SLOT_BYTES = 320
HEAD_BYTES = 4096
"""The slots begin here."""
RING_BYTES = HEAD_BYTES + SLOTS * SLOT_BYTES

_HEAD = struct.Struct("<8s36sQQQ")
_REMOVAL = struct.Struct("<QQQQqH")
_CHECKSUM = struct.Struct("<I")
HEAD_READ_BYTES = _HEAD.size + _CHECKSUM.size


class Head(NamedTuple):
    """What the server says of a ring.

    `boot` names the machine's start: of another one nothing in the file is good for anything. While `term` is
    not 0, and the session counts as alone by a grant that has told this very number, the mount may write.
    `taken` removals were carried out, and their slots may be used again.
    """

    boot: bytes
    session: int
    term: int
    taken: int


class Removal(NamedTuple):
    """One removal: the name in directory `parent` that inode `ino` had until `removed_ns`, of a `term`."""

    number: int
    term: int
    parent: int
    ino: int
    removed_ns: int
    name: bytes


def slot_offset(number: int) -> int:
    """Return where in the file the removal of this number is, in bytes."""
    return HEAD_BYTES + number % SLOTS * SLOT_BYTES


def pack_head(head: Head) -> bytes:
    """Return the bytes that the file begins with."""
    packed = _HEAD.pack(MAGIC, *head)
    return packed + _CHECKSUM.pack(zlib.crc32(packed))


def unpack_head(data: bytes) -> Head | None:
    """Return what the bytes at the beginning of a file say; None if they are no whole head."""
    if len(data) < HEAD_READ_BYTES or data[: len(MAGIC)] != MAGIC:
        return None
    (checksum,) = _CHECKSUM.unpack_from(data, _HEAD.size)
    if zlib.crc32(data[: _HEAD.size]) != checksum:
        return None
    _, boot, session, term, taken = _HEAD.unpack_from(data)
    return Head(boot, session, term, taken)


def pack_removal(removal: Removal) -> bytes:
    """Return the bytes of a slot; a name has at most 255."""
    *numbers, name = removal
    packed = _REMOVAL.pack(*numbers, len(name)) + name
    return _CHECKSUM.pack(zlib.crc32(packed)) + packed


def unpack_removal(slot: bytes, number: int, term: int) -> Removal | None:
    """Return the removal of this number and term that the bytes of a slot are; None if they are none."""
    if len(slot) < _CHECKSUM.size + _REMOVAL.size:
        return None
    (checksum,) = _CHECKSUM.unpack_from(slot)
    *found, parent, ino, removed_ns, length = _REMOVAL.unpack_from(slot, _CHECKSUM.size)
    if found != [number, term]:
        return None
    name_at = _CHECKSUM.size + _REMOVAL.size
    if zlib.crc32(slot[_CHECKSUM.size : name_at + length]) != checksum:
        return None
    return Removal(number, term, parent, ino, removed_ns, slot[name_at : name_at + length])
