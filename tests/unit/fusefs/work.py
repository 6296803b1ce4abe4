"""Whole pieces of work on a file system, as programs do them."""

from __future__ import annotations

import os
import sys
import threading

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from fusefs.patience import CallLock


def write(fs: FileSystem, handle: Handle, offset: int, data: bytes) -> None:
    fs.files.write(handle, offset, memoryview(data))


def close(fs: FileSystem, handle: Handle) -> None:
    try:
        fs.files.flush(handle)
    finally:
        fs.files.release(handle)


def make(fs: FileSystem, name: bytes, content: bytes) -> int:
    attributes, handle = fs.create(1, name, 0o644, 0, 0, os.O_WRONLY)
    if content:
        write(fs, handle, 0, content)
    close(fs, handle)
    return attributes.ino


def read(fs: FileSystem, ino: int, offset: int = 0, size: int = 1 << 24) -> bytes:
    handle, _ = fs.files.open(ino, os.O_RDONLY)
    try:
        return bytes(fs.files.read(handle, offset, size))
    finally:
        close(fs, handle)


def is_waiting(thread: threading.Thread) -> bool:
    """Tell whether a thread is within a commit of another one."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is CallLock.__enter__.__code__
