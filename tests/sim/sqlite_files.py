"""Tells the simulated disks what SQLite writes and syncs by itself: the metadata database, and its log.

SQLite's own file layer does the work; the metadata server's checks of pages are put on top of it, as ever.
Each write, cut and sync is told to the disk before it is done, so that it can be undone or torn. One thread.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from typing import Any

from metaserver import pages
from tests.sim.disk import Disk

FULL, IOERR = 13, 10
IOERR_READ, IOERR_WRITE, IOERR_SYNC = (IOERR | kind << 8 for kind in (1, 3, 4))

_Cut = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong)

logger = logging.getLogger("tests.sim")


def install(disk_of: Callable[[str], Disk | None]) -> None:
    """Have disks told of the databases that are opened from now on.

    Args:
        disk_of: returns the disk that a path is on.
    """
    for name in ("_hooked", "_hooked_log"):
        setattr(pages, name, _told(getattr(pages, name), disk_of))


def _told(hooked: Callable[..., Any], disk_of: Callable[[str], Disk | None]) -> Callable[..., Any]:
    def put_on(name: bytes, usual: Any) -> Any:
        path = os.fsdecode(name)
        disk = disk_of(path)
        return hooked(name, usual if disk is None else _noted(disk, path, usual))

    return put_on


def _noted(disk: Disk, path: str, usual: Any) -> Any:
    """Return the operations on a file, which are told to the disk first."""
    usual_read, usual_write = pages._Transfer(usual.read), pages._Transfer(usual.write)
    usual_cut, usual_sync = _Cut(usual.truncate), pages._Sync(usual.sync)

    def size_now() -> int:
        return os.stat(path).st_size  # noqa: PTH116  for each write; a Path costs more than the rest

    def content(file: int, offset: int, length: int, size: int) -> bytes:
        if offset >= size:  # what is behind the end is zeros
            return bytes(length)
        buffer = ctypes.create_string_buffer(length)
        usual_read(file, ctypes.addressof(buffer), length, offset)
        return buffer.raw

    def read(file: int, buffer: int, length: int, offset: int) -> int:
        if disk.fails_to_read(path):
            return IOERR_READ
        return int(usual_read(file, buffer, length, offset))

    def write(file: int, buffer: int, length: int, offset: int) -> int:
        before = size_now()
        try:
            disk.require_room(max(0, offset + length - before))
        except OSError as error:
            return FULL if error.errno == errno.ENOSPC else IOERR_WRITE
        if not before:
            disk.note_new(path)
        disk.note(path, offset, content(file, offset, length, before), before)
        return int(usual_write(file, buffer, length, offset))

    def cut(file: int, size: int) -> int:
        before = size_now()
        if before > size:
            disk.note(path, size, content(file, size, before - size, before), before, cuts=True)
        return int(usual_cut(file, size))

    def sync(file: int, flags: int) -> int:
        try:
            disk.sync(path)
        except OSError:
            return IOERR_SYNC
        return int(usual_sync(file, flags))

    hooks = {
        "read": pages._Transfer(_never_raises(read)),
        "write": pages._Transfer(_never_raises(write)),
        "truncate": _Cut(_never_raises(cut)),
        "sync": pages._Sync(_never_raises(sync)),
    }
    return pages._with_hooks(usual, hooks)


def _never_raises(operation: Callable[..., int]) -> Callable[..., int]:
    """SQLite would take an exception for success."""

    def guarded(*args: int) -> int:
        try:
            return operation(*args)
        except Exception:
            logger.exception("the simulated disk failed")
            return IOERR

    return guarded
