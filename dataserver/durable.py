"""How this package makes files durable, and what that takes (of directories, see wire.directories).

No state; safe in any thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from pathlib import Path

from wire.digest import Buffer
from wire.directories import sync_directory

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_ZERO_PAGE = bytes(4096)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_AT_EMPTY_PATH, _STATX_NLINK = 0x1000, 4
_STATX_BYTES = 256
_LINKS = struct.Struct("16xI")


def write_file(path: Path, content: bytes) -> None:
    """Give a file new contents, whole and durable, or leave it as it was."""
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()  # on a full disk it would be in the way of what makes room
        raise
    sync_directory(path.parent)


def write_all(handle: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls it takes. Raises OSError."""
    written = os.pwrite(handle, data, offset)
    while written < len(data):
        written += os.pwrite(handle, memoryview(data)[written:], offset + written)


def write_pages(handle: int, data: Buffer, offset: int) -> None:
    """Write `data` at a page's offset, zeros up to a whole page after it. Raises OSError.

    A part of a page that the file has already would first be read by the kernel.
    """
    rest = -len(data) % len(_ZERO_PAGE)
    write_all(handle, b"".join((data, _ZERO_PAGE[:rest])) if rest else data, offset)


def punch_hole(handle: int, offset: int, length: int) -> bool:
    """Free a range of a file; it reads as zeros then. Returns False where the file system cannot do it.

    See fallocate(2), FALLOC_FL_PUNCH_HOLE.
    """
    while _libc.fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def count_links(handle: int) -> int:
    """Return how many names an open file has, without a question for its times.

    After each question for these (fstat(2) is one) the kernel gives the next write a time of its own, and the
    sync after it has the inode to write too, once the bytes are written. Without, only the first in 4 ms has
    (CONFIG_HZ = 250).

    Raises:
        OSError: the file cannot be asked.
    Source: statx(2); https://docs.kernel.org/filesystems/multigrain-ts.html
    """
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(handle, b"", _AT_EMPTY_PATH, _STATX_NLINK, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    links: int = _LINKS.unpack_from(found)[0]
    return links
