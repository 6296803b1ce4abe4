"""Directory listings as the kernel takes them: struct fuse_dirent and struct fuse_direntplus, packed.

libfuse packs them entry by entry through ctypes, which costs ten times as much. Source: linux/fuse.h of the
kernel's user interface (the layout is the same for all kernels that libfuse 3 speaks to). Pure.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Sequence

from fusefs.operations import BLOCK_SIZE_TOLD
from wire.messages import Attributes, Entry

_NAME = struct.Struct("=QQII")
"""struct fuse_dirent: ino, off, namelen, type; the name follows, filled up to 8 bytes."""
_KEPT = struct.Struct("=QQQQIIQQQqqqIIIIIIIIII")
"""struct fuse_entry_out: nodeid, generation, time-outs; and struct fuse_attr."""
_NOT_KEPT = bytes(_KEPT.size)

LEAST_BYTES = _NAME.size + 8
LEAST_PLUS_BYTES = _KEPT.size + LEAST_BYTES
"""The shortest entry, without and with attributes: so many fit at most into an answer."""

Find = Callable[[bytes], Attributes | None]


def pack(directory: int, entries: Sequence[Entry], offset: int, size: int) -> bytes:
    """Return as many entries from `offset` on (0 is `.`, 1 is `..`) as fit into `size` bytes.

    `entries` are the first ones of the directory, at least as many as fit, or all.
    """
    return _pack(directory, entries, offset, size, 0.0, None, b"")


def pack_plus(
    directory: int, entries: Sequence[Entry], offset: int, size: int, seconds: float, find: Find | None
) -> bytes:
    """Return entries as `pack` does, with what the kernel may keep for `seconds`.

    Args:
        directory: its inode number.
        entries: the first ones of it, at least as many as fit, or all.
        offset: where to begin.
        size: how many bytes there may be.
        seconds: how long the kernel may rely on names and attributes.
        find: returns the attributes of a name if it may; None: of no name.
    """
    return _pack(directory, entries, offset, size, seconds, find, _NOT_KEPT)


def _pack(
    directory: int,
    entries: Sequence[Entry],
    offset: int,
    size: int,
    seconds: float,
    find: Find | None,
    head: bytes,
) -> bytes:
    parts: list[bytes] = []
    used = 0
    for index in range(offset, len(entries) + 2):
        front = head
        if index < 2:
            name, ino, mode = (b".", b"..")[index], directory, stat.S_IFDIR
        else:
            name, told = entries[index - 2]
            ino, mode = told.ino, told.mode
            if find is not None and (known := find(name)) is not None and known.ino == ino:
                front = _kept(known, seconds)
        padding = -len(name) % 8
        used += len(head) + _NAME.size + len(name) + padding
        if used > size:
            break
        parts += (front, _NAME.pack(ino, index + 1, len(name), stat.S_IFMT(mode) >> 12), name, bytes(padding))
    return b"".join(parts)


def _kept(attributes: Attributes, seconds: float) -> bytes:
    ino, mode, nlink, uid, gid, rdev, size, allocated_bytes, atime_ns, mtime_ns, ctime_ns, _ = attributes
    whole = int(seconds)
    rest_ns = int((seconds - whole) * 1e9)
    atime, atime_rest = divmod(atime_ns, 1_000_000_000)
    mtime, mtime_rest = divmod(mtime_ns, 1_000_000_000)
    ctime, ctime_rest = divmod(ctime_ns, 1_000_000_000)
    blocks = -(-allocated_bytes // 512)
    return _KEPT.pack(
        *(ino, 0, whole, whole, rest_ns, rest_ns, ino, size, blocks, atime, mtime, ctime),
        *(atime_rest, mtime_rest, ctime_rest, mode, nlink, uid, gid, rdev & 0xFFFFFFFF, BLOCK_SIZE_TOLD, 0),
    )
