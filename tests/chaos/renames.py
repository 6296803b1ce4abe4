"""Whole files put in place by a rename: who reads sees a whole old one or a whole new one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.chaos.calls import Calls
from tests.chaos.work import Work

COUNT = 4
HEAD = 8


def pack(version: int, data: bytes) -> bytes:
    """Return a content that can be checked by itself."""
    body = version.to_bytes(HEAD, "big") + data
    return hashlib.sha256(body).digest() + body


def unpack(content: bytes) -> int | None:
    """Return the version of a content, or None if it is not whole."""
    digest, body = content[:32], content[32:]
    return int.from_bytes(body[:HEAD], "big") if hashlib.sha256(body).digest() == digest else None


class RenameWork(Work):
    """Versions count up; those from the last acknowledged to the last tried may be seen."""

    name = "renames"

    def __init__(self, mounts: list[Path], number: int, seed: int, calls: Calls) -> None:
        super().__init__(mounts, number, seed, calls)
        self._acknowledged = [0] * COUNT
        self._tried = [0] * COUNT
        (self.own / self.name).mkdir(exist_ok=True)

    def step(self) -> None:
        index = self.dice.randrange(COUNT)
        version = self._tried[index] + 1
        temporary = self.own / self.name / f"new-{self.number}-{index}"
        data = self.dice.randbytes(self.dice.choice([10, 3000, 100_000]))
        self.write(temporary, pack(version, data), os.O_CREAT | os.O_TRUNC, sync=True)
        self._tried[index] = version
        with self.calls.timed("name", f"rename {temporary}"):
            temporary.rename(self._path(self.own, index))
        self._acknowledged[index] = version
        self.calls.completed(self.name)
        self._compare(self.dice.choice([self.own, self.other]), index)

    def check(self) -> None:
        for mount in (self.own, self.other):
            for index in range(COUNT):
                self._compare(mount, index)

    def _path(self, mount: Path, index: int) -> Path:
        return mount / self.name / f"whole-{self.number}-{index}"

    def _compare(self, mount: Path, index: int) -> None:
        path, content = self._path(mount, index), self.look(self._path(mount, index))
        least, most = self._acknowledged[index], self._tried[index]
        version = 0 if content is None else unpack(content)
        if version is None:
            self.calls.is_wrong(f"{path}: {len(content or b'')} bytes, neither the old file nor the new one")
        elif version < least:
            self.calls.is_lost(f"{path}: version {version}, and {least} was acknowledged")
        elif version > most:
            self.calls.is_wrong(f"{path}: version {version}, and only {most} was ever written")
        else:
            self.calls.checked(len(content or b""))
