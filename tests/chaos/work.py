"""What all kinds of work of the load share: paths on two mounts, and system calls that are counted.

A piece of work writes by its own mount and reads by either. One thread each.
"""

from __future__ import annotations

import errno
import os
import random
from contextlib import suppress
from pathlib import Path

from tests.chaos.calls import Calls

CHUNK = 1 << 20


class Work:
    """One kind of work. `number` tells the load processes apart; `mounts` are the own and the other one."""

    name = ""

    def __init__(self, mounts: list[Path], number: int, seed: int, calls: Calls) -> None:
        self.own, self.other = mounts
        self.number = number
        self.calls = calls
        self.dice = random.Random(f"{seed} {number} {self.name}")

    def step(self) -> None:
        """Do one piece of work and check it. Raises OSError if a call failed; the next step goes on."""
        raise NotImplementedError

    def check(self) -> None:
        """Check everything by both mounts, when no fault is left. Raises OSError if a call failed."""
        raise NotImplementedError

    def write(self, path: Path, data: bytes, flags: int, *, offset: int | None = None, sync: bool) -> None:
        """Open, write, fsync if wanted, and close. Raises OSError."""
        with self.calls.timed("name", f"open {path}"):
            file = os.open(path, os.O_RDWR | flags, 0o600)
        try:
            view, place = memoryview(data), offset
            while view:
                with self.calls.timed("write", f"write {path}"):
                    size = os.write(file, view) if place is None else os.pwrite(file, view, place)
                view, place = view[size:], None if place is None else place + size
            if sync:
                with self.calls.timed("write", f"fsync {path}"):
                    os.fsync(file)
        except BaseException:
            with suppress(OSError), self.calls.timed("write", f"close {path}"):
                os.close(file)
            raise
        with self.calls.timed("write", f"close {path}"):
            os.close(file)

    def read(self, path: Path) -> bytes:
        """Return all bytes of a file. Raises OSError."""
        with self.calls.timed("name", f"open {path}"):
            file = os.open(path, os.O_RDONLY)
        try:
            parts: list[bytes] = []
            while True:
                with self.calls.timed("read", f"read {path}"):
                    part = os.read(file, CHUNK)
                if not part:
                    return b"".join(parts)
                parts.append(part)
        finally:
            os.close(file)

    def look(self, path: Path) -> bytes | None:
        """Return all bytes of a file, or None. Raises OSError, also while nothing is mounted."""
        for _ in range(2):
            try:
                return self.read(path)
            except FileNotFoundError:
                # Below a mount point without its mount there is nothing at all, not even the place.
                if not path.parent.exists():
                    raise OSError(errno.ENOTCONN, f"not mounted: {path}") from None
        return None
