"""How much of the disk a data server leaves free, so that deleting can go on when it is full.

It decides nothing about blocks. Threads: any; two that ask at once both ask the disk.
"""

from __future__ import annotations

import errno
import os
import time
from enum import Enum
from typing import Protocol

RESERVE_BYTES = 16 * 1024 * 1024
PLENTY_BYTES, PLENTY_SECONDS = 1024 * 1024 * 1024, 0.05
"""With so much free beyond the reserve, it is not reached before so long has passed, whoever writes."""


class Purpose(Enum):
    """What is written for. The value: so many halves of the reserve it leaves alone."""

    PUT = 2
    REPAIR = 1
    PROMISE = 0
    """What was promised to be kept, and has its share of the second half."""


class _OnDisk(Protocol):
    """An open file."""

    def fileno(self) -> int: ...


class Reserve:
    """What is left free of one disk.

    Attributes:
        size: of the reserve, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._plenty_until = 0.0

    def require(self, file: _OnDisk, size: int, purpose: Purpose = Purpose.PUT) -> None:
        """Refuse what would touch the reserve. With plenty of room the disk is asked only now and then.

        Args:
            file: on the disk.
            size: how many bytes are to be written.
            purpose: how much of the reserve it may use.

        Raises:
            OSError: ENOSPC, there is less room; or the disk failed.
        """
        now = time.monotonic()
        if now < self._plenty_until:
            return
        free = _free_bytes(file)
        if free < size + self.size * purpose.value // 2:
            raise OSError(errno.ENOSPC, "the reserve is reached")
        if free >= size + self.size + PLENTY_BYTES:
            self._plenty_until = now + PLENTY_SECONDS

    def leaves(self, file: _OnDisk, size: int) -> bool:
        """Tell whether so many bytes more would leave the reserve alone. Raises OSError."""
        return _free_bytes(file) >= self.size + size


def _free_bytes(file: _OnDisk) -> int:
    found = os.fstatvfs(file.fileno())
    return found.f_bavail * found.f_frsize
