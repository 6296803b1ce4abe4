"""What rings have in common: a head, and a file in shared memory. See wire.ring and wire.block_ring.

A ring is a file that one process writes for another of the same machine, without a call. Its owner, who reads
it, makes the file and writes the head; whoever was told the head's term writes the slots: number S is in slot
S modulo their count. Each part is written by one system call and has a checksum, so that a reader sees
a whole one or none. The file is in shared memory (tmpfs): it survives the kill of any process, waits for no
disk, and goes with the power, as all does that no fsync made durable. Formats and places only. Safe in any
thread. See docs/decisions/0031-changes-without-a-call.md and 0032-puts-without-a-call.md.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from wire.digest import block_digest
from wire.directories import IDENTITY_NAME

MAGIC = b"qfsring2"
HEAD_BYTES = 4096
"""The slots begin here."""
SHARED_MEMORY = Path("/dev/shm")
"""Where rings are: see shm_overview(7)."""
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
"""Names the machine's start; see random(4)."""
NAMES = "quorumfs-"
"""What all their names begin with."""
CHANGES, BLOCKS = "ring", "blocks"
"""Kinds of rings, as their files' names tell."""
TERM_NUMBERS = 2**62
"""A term is a random number from 1 to this."""

_HEAD = struct.Struct("<8s36sQQQQ")
_CHECKSUM = struct.Struct("<I")
HEAD_READ_BYTES = _HEAD.size + _CHECKSUM.size


class Head(NamedTuple):
    """What the owner says of a ring.

    `boot` names the machine's start: of another one nothing in the file is good for anything. `session` is
    whose ring it is (0: a mediator's). While `term` is not 0, who was told this very number may write.
    `taken` slots were taken in, and may be used again. What needs room on the owner's disk
    has it if its number is at most `room_until`.
    """

    boot: bytes
    session: int
    term: int
    taken: int
    room_until: int


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
    _, boot, session, term, taken, room_until = _HEAD.unpack_from(data)
    return Head(boot, session, term, taken, room_until)


def prefix(directory: Path, kind: str) -> str:
    """Return what the names of the rings of one server's directory begin with.

    It tells what its server.json says, with the random id in there, and which inode: the same when its disk
    is mounted again, whatever number the device has then, and another one for other servers, for what is
    begun in its place, and for a copy with another inode number, as what is in the rings is done once.
    Raises OSError.
    """
    try:
        server = (directory / IDENTITY_NAME).read_bytes()
    except FileNotFoundError:
        server = b""
    return f"{NAMES}{kind}-{block_digest(server).hex()[:16]}-{directory.stat().st_ino:x}-"


def boot_in(file: Path) -> bytes:
    """Return what BOOT_FILE says of this start of the machine; b"" where nothing does."""
    try:
        boot = file.read_text().strip().encode()
    except OSError:
        return b""
    return boot if len(boot) == 36 else b""
