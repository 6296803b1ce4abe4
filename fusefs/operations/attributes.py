"""Attributes and room as libfuse's structures have them: translated to and fro, nothing decided. Pure."""

from __future__ import annotations

import stat
from typing import Any

from fusefs.operations import BLOCK_SIZE_TOLD, ROOM_UNIT_BYTES
from fusefs.operations.structures import EntryParameters, Stat, StatVfs
from wire.messages import AttributeChanges, Attributes, Usage

SET_MODE, SET_UID, SET_GID, SET_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SET_ATIME, SET_MTIME, SET_ATIME_NOW, SET_MTIME_NOW = 1 << 4, 1 << 5, 1 << 7, 1 << 8
"""FUSE_SET_ATTR_* of include/fuse_lowlevel.h: what of the new attributes is to be set."""
TAKES_SET_ID = SET_SIZE | SET_UID | SET_GID


def changes_of(values: Any, to_set: int, now_ns: int) -> AttributeChanges:
    """Return what a request changes, but for the size.

    Args:
        values: the new attributes, a struct stat.
        to_set: which of them count.
        now_ns: the time for what is to be set to now.
    """
    return AttributeChanges(
        mode=stat.S_IMODE(values.st_mode) if to_set & SET_MODE else None,
        uid=values.st_uid if to_set & SET_UID else None,
        gid=values.st_gid if to_set & SET_GID else None,
        atime_ns=_time_of(values.st_atimespec, to_set & SET_ATIME, to_set & SET_ATIME_NOW, now_ns),
        mtime_ns=_time_of(values.st_mtimespec, to_set & SET_MTIME, to_set & SET_MTIME_NOW, now_ns),
    )


def _time_of(moment: Any, is_given: int, is_now: int, now_ns: int) -> int | None:
    if is_now:
        return now_ns
    return int(moment.tv_sec) * 1_000_000_000 + int(moment.tv_nsec) if is_given else None


def room_of(usage: Usage) -> Any:
    """Return the room in the file system, as statvfs(3) tells it."""
    room = StatVfs()
    room.f_bsize = room.f_frsize = ROOM_UNIT_BYTES
    room.f_blocks = usage.total_bytes // ROOM_UNIT_BYTES
    room.f_bfree = room.f_bavail = usage.free_bytes // ROOM_UNIT_BYTES
    room.f_files = usage.files
    room.f_ffree = room.f_favail = usage.free_files
    room.f_namemax = 255
    return room


def status_of(attributes: Attributes) -> Any:
    """Return attributes as a struct stat."""
    status = Stat()
    _fill(status, attributes)
    return status


def entry_of(attributes: Attributes) -> EntryParameters:
    """Return what is told of a name's inode, of which nothing may be kept."""
    entry = EntryParameters()
    entry.ino = attributes.ino
    _fill(entry.attr, attributes)
    return entry


def _fill(status: Any, attributes: Attributes) -> None:
    (
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        allocated_bytes,
        atime_ns,
        mtime_ns,
        ctime_ns,
        _,
    ) = attributes
    status.st_blksize = BLOCK_SIZE_TOLD
    status.st_blocks = -(-allocated_bytes // 512)
    for moment, value in (
        (status.st_atimespec, atime_ns),
        (status.st_mtimespec, mtime_ns),
        (status.st_ctimespec, ctime_ns),
    ):
        moment.tv_sec, moment.tv_nsec = divmod(value, 1_000_000_000)
