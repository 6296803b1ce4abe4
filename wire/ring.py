"""The ring of changes: the file in which a mount that is alone tells what it has changed, without a call.

The metadata server owns it (wire.ring_head), and the mount of the same machine writes its slots. Formats
only; the rules are in fusefs.ring and metaserver.rings, and in docs/decisions/0031-changes-without-a-call.md.
Pure; safe in any thread.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from wire.ring_head import HEAD_BYTES

SLOTS = 512
SLOT_BYTES = 512
RING_BYTES = HEAD_BYTES + SLOTS * SLOT_BYTES

_ENTRY = struct.Struct("<QQBH")
_REMOVAL = struct.Struct("<QQq")
_NEW_FILE = struct.Struct("<QQQQIIIQqqq16s32s")
_CHECKSUM = struct.Struct("<I")
_IS_REMOVAL, _IS_NEW_FILE = 1, 2


class Removal(NamedTuple):
    """The name in directory `parent` that inode `ino`, no directory, had until `removed_ns`."""

    parent: int
    ino: int
    removed_ns: int
    name: bytes


class NewFile(NamedTuple):
    """A regular file whose first commit was told at `told_ns`: one whole block, which all its servers have.

    It is the call BookkeepingMethods.commit of this slot and sequence, with a birth, carried out then.
    """

    slot: int
    sequence: int
    ino: int
    parent: int
    mode: int
    uid: int
    gid: int
    length: int
    atime_ns: int
    mtime_ns: int
    told_ns: int
    block: bytes
    digest: bytes
    name: bytes


Change = Removal | NewFile


class Entry(NamedTuple):
    """One change of a `term`."""

    number: int
    term: int
    change: Change


def slot_offset(number: int) -> int:
    """Return where in the file the change of this number is, in bytes."""
    return HEAD_BYTES + number % SLOTS * SLOT_BYTES


def pack_entry(entry: Entry) -> bytes:
    """Return the bytes of a slot; a name has at most 255."""
    number, term, change = entry
    *fields, name = change
    if isinstance(change, Removal):
        kind, packed = _IS_REMOVAL, _REMOVAL.pack(*fields)
    else:
        kind, packed = _IS_NEW_FILE, _NEW_FILE.pack(*fields)
    content = packed + name
    packed = _ENTRY.pack(number, term, kind, len(content)) + content
    return _CHECKSUM.pack(zlib.crc32(packed)) + packed


def unpack_entry(slot: bytes, number: int, term: int) -> Entry | None:
    """Return the change of this number and term that the bytes of a slot are; None if they are none."""
    content_at = _CHECKSUM.size + _ENTRY.size
    if len(slot) < content_at:
        return None
    (checksum,) = _CHECKSUM.unpack_from(slot)
    *found, kind, length = _ENTRY.unpack_from(slot, _CHECKSUM.size)
    if found != [number, term] or zlib.crc32(slot[_CHECKSUM.size : content_at + length]) != checksum:
        return None
    content = slot[content_at : content_at + length]
    if kind == _IS_REMOVAL:
        change: Change = Removal._make((*_REMOVAL.unpack_from(content), content[_REMOVAL.size :]))
    else:
        change = NewFile._make((*_NEW_FILE.unpack_from(content), content[_NEW_FILE.size :]))
    return Entry(number, term, change)
