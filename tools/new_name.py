"""A file that is whole gets its name, unless something else has that name already.

However this is interrupted, nothing else gets the name, where the disk can do so at all. Safe in any thread.
Source: rename(2)
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD, RENAME_NOREPLACE = -100, 1
NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""What disks say that have no such rename, or no second names, as some of the network have."""

_libc = ctypes.CDLL(None, use_errno=True)


def give_name(file: Path, name: Path) -> None:
    """Rename a file in its directory.

    Raises:
        FileExistsError: something has the name, and keeps it.
        OSError.
    """
    for way in (_rename, _link):
        try:
            return way(file, name)
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
    name.open("xb").close()  # empty for a moment: of two that come here at once, one has the name
    file.rename(name)
    return None


def _rename(file: Path, name: Path) -> None:
    rename = getattr(_libc, "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(AT_FDCWD, os.fsencode(file), AT_FDCWD, os.fsencode(name), RENAME_NOREPLACE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)


def _link(file: Path, name: Path) -> None:
    name.hardlink_to(file)
    file.unlink()
