"""A counter that all load processes raise under an fcntl lock: no value is given twice, none is undone."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import zlib
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from tests.chaos.calls import Calls
from tests.chaos.work import Work

WAIT_SECONDS = 0.05
LENGTH = 21


class CounterWork(Work):
    """`granted` holds the values that this process was given; they are compared between processes too."""

    name = "counter"

    def __init__(self, mounts: list[Path], number: int, seed: int, calls: Calls) -> None:
        super().__init__(mounts, number, seed, calls)
        self.granted: list[int] = []

    def step(self) -> None:
        path = self.own / "counter"
        with self.calls.timed("name", f"open {path}"):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._lock(file)
            self._raise(file)
            with self.calls.timed("lock", "unlock counter"):
                fcntl.lockf(file, fcntl.LOCK_UN)
        finally:
            with suppress(OSError):
                os.close(file)

    def check(self) -> None:
        for mount in (self.own, self.other):
            content = self.look(mount / "counter")
            value = self._value(content or b"")
            if self.granted and value < self.granted[-1]:
                self.calls.is_lost(f"{mount}/counter is {value}, and {self.granted[-1]} was acknowledged")

    def _lock(self, file: int) -> None:
        while True:
            try:
                with self.calls.timed("lock", "lock counter"):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            time.sleep(self.dice.uniform(0, WAIT_SECONDS))

    def _raise(self, file: int) -> None:
        with self.calls.timed("read", "read counter"):
            content = os.pread(file, 100, 0)
        value = self._value(content) + 1
        text = f"{value:012d}"
        record = f"{text} {zlib.crc32(text.encode()):08x}".encode()
        with self.calls.timed("write", "write counter"):
            os.pwrite(file, record, 0)
        with self.calls.timed("write", "fsync counter"):
            os.fsync(file)
        if self.granted and value <= self.granted[-1]:
            self.calls.is_wrong(f"the counter gave {value} after {self.granted[-1]}")
        self.granted.append(value)
        self.calls.completed(self.name)

    def _value(self, content: bytes) -> int:
        if not content:
            return 0
        text, _, checksum = content.partition(b" ")
        if len(content) != LENGTH or checksum != b"%08x" % zlib.crc32(text):
            self.calls.is_wrong(f"the counter holds {content!r}")
            return 0
        self.calls.checked(len(content))
        return int(text)


def twice(granted: list[list[int]]) -> list[str]:
    """Return what is wrong about the values that all processes were granted."""
    values = sorted(value for one in granted for value in one)
    return [f"the counter gave {one} twice" for one, other in pairwise(values) if one == other]
