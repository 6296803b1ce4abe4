"""A log that all processes append durable records to: each is there once, whole, in its writer's order."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from tests.chaos.calls import Calls
from tests.chaos.work import Work

ROLL = 400
"""A writer goes on to the next log after so many records, so that reading one stays quick."""


class AppendWork(Work):
    """Records "writer number checksum text"; a record whose append failed may be there or not."""

    name = "appends"

    def __init__(self, mounts: list[Path], number: int, seed: int, calls: Calls) -> None:
        super().__init__(mounts, number, seed, calls)
        self._acknowledged: dict[int, list[int]] = {}
        self._next = 0
        (self.own / self.name).mkdir(exist_ok=True)

    def step(self) -> None:
        number, self._next = self._next, self._next + 1
        log = number // ROLL
        text = self.dice.randbytes(self.dice.randint(1, 400)).hex()
        body = f"{self.number} {number} {text}"
        record = f"{zlib.crc32(body.encode()):08x} {body}\n".encode()
        self.write(self._path(self.own, log), record, os.O_APPEND | os.O_CREAT, sync=True)
        self._acknowledged.setdefault(log, []).append(number)
        self.calls.completed(self.name)
        if self.dice.random() < 0.1:
            self._compare(self.dice.choice([self.own, self.other]), log)

    def check(self) -> None:
        for mount in (self.own, self.other):
            for log in self._acknowledged:
                self._compare(mount, log)

    def _path(self, mount: Path, log: int) -> Path:
        return mount / self.name / f"log-{log}"

    def _compare(self, mount: Path, log: int) -> None:
        path, acknowledged = self._path(mount, log), list(self._acknowledged.get(log, []))
        content = self.read(path)
        found = []
        for line in content.splitlines(keepends=True):
            checksum, _, body = line.partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body[:-1]):
                self.calls.is_wrong(f"{path}: a record that is not whole: {line[:60]!r} of {len(line)} bytes")
                continue
            writer, number, _ = body.split(b" ")
            if int(writer) == self.number:
                found.append(int(number))
        if sorted(set(found)) != found:
            again = [number for place, number in enumerate(found) if number in found[:place]]
            self.calls.is_wrong(f"{path}: records of {self.number} out of order or twice: {again or found}")
        if lacking := sorted(set(acknowledged) - set(found)):
            self.calls.is_lost(f"{path}: records of {self.number}: {lacking[:10]} ({len(lacking)})")
        self.calls.checked(len(content))
