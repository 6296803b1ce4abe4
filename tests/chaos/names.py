"""Runs of small new files and of removals, as a mount that is alone tells them without a call.

Each name is used once, so that the check is easy: what was acknowledged as made is there with its bytes, and
what was acknowledged as removed never returns. A journal on another disk lets whoever comes by another mount
know what that is. One thread each; the journal is read by others at any time.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.chaos.calls import Calls
from tests.chaos.work import Work

LIVE = 150
RUN = (5, 40)
SIZES = (0, 1, 100, 4096, 20_000)
READ = 10
"""So many files are read after each run."""


def content_of(number: int, writer: int) -> bytes:
    """Return what the file of this number holds."""
    dice = random.Random(f"{writer} {number}")
    return dice.randbytes(dice.choice(SIZES))


class Known(NamedTuple):
    """What a journal says: which files are there, which are gone; of the others nobody knows."""

    there: frozenset[int]
    gone: frozenset[int]


class Journal:
    """What was acknowledged, a line for each: "+7" made, "?7" about to be removed, "-7" removed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def note(self, what: str, number: int) -> None:
        """Add a line."""
        self._file.write(f"{what}{number}\n".encode())

    @staticmethod
    def read(path: Path) -> Known:
        """Return what one says now."""
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        noted: dict[str, set[int]] = {"+": set(), "?": set(), "-": set()}
        for line in lines:
            if line.endswith("\n"):
                noted[line[0]].add(int(line[1:]))
        return Known(frozenset(noted["+"] - noted["?"]), frozenset(noted["-"]))


class NamesWork(Work):
    """See above. What came of a call that failed is not asked: its name is never looked at again."""

    name = "names"

    def __init__(
        self, mounts: list[Path], number: int, seed: int, calls: Calls, journal: Path = Path(os.devnull)
    ) -> None:
        super().__init__(mounts, number, seed, calls)
        self._next = 0
        self._there: list[int] = []
        self._gone: set[int] = set()
        self._journal = Journal(journal)
        directory_of(self.own, number).mkdir(parents=True, exist_ok=True)

    def step(self) -> None:
        count = self.dice.randint(*RUN)
        if self.dice.random() * LIVE < len(self._there):
            for _ in range(min(count, len(self._there))):
                self._remove(self._there.pop(self.dice.randrange(len(self._there))))
        else:
            for _ in range(count):
                self._make()
        self._compare(self.dice.choice([self.own, self.other]), READ)

    def check(self) -> None:
        for mount in (self.own, self.other):
            self._compare(mount, len(self._there))

    def _make(self) -> None:
        number, self._next = self._next, self._next + 1
        path = path_of(self.own, self.number, number)
        self.write(path, content_of(number, self.number), os.O_CREAT | os.O_EXCL, sync=False)
        self._there.append(number)
        self._journal.note("+", number)
        self.calls.completed("made")

    def _remove(self, number: int) -> None:
        path = path_of(self.own, self.number, number)
        self._journal.note("?", number)
        try:
            with self.calls.timed("name", f"unlink {path}"):
                path.unlink()
        except FileNotFoundError:
            if not path.parent.exists():
                raise  # nothing is mounted
            self.calls.is_lost(f"{path}: cannot be removed, and was acknowledged as made")
            return
        self._gone.add(number)
        self._journal.note("-", number)
        self.calls.completed("removed")

    def _compare(self, mount: Path, most: int) -> None:
        known = Known(frozenset(self._there), frozenset(self._gone))
        found = look_at(mount, self.number, known, lambda: known, most)
        for line in found.lost:
            self.calls.is_lost(line)
        for line in found.wrong:
            self.calls.is_wrong(line)
        self.calls.checked(
            sum(len(content_of(number, self.number)) for number in sorted(known.there)[-most:])
        )
        # Once told, it is taken as it is.
        self._there = [number for number in self._there if number in found.listed]
        self._gone -= found.listed


def directory_of(mount: Path, writer: int) -> Path:
    """Return where a load process has its names."""
    return mount / NamesWork.name / str(writer)


def path_of(mount: Path, writer: int, number: int) -> Path:
    """Return the path of one."""
    return directory_of(mount, writer) / f"{number:07d}"


def numbers_in(mount: Path, writer: int) -> set[int]:
    """List the names. Raises OSError, also while nothing is mounted."""
    return {int(path.name) for path in directory_of(mount, writer).iterdir()}


class Found(NamedTuple):
    """What there was on a mount, and what of it is lost or wrong."""

    listed: set[int]
    lost: list[str]
    wrong: list[str]


def look_at(mount: Path, writer: int, before: Known, after: Callable[[], Known], most: int) -> Found:
    """Compare a mount with what was known before; `after` is asked when all is read. Raises OSError.

    Args:
        mount: the load's place on it.
        writer: whose names.
        before: what was known before any of it was looked at.
        after: says what is known then: a file may be removed meanwhile.
        most: so many files are read, the newest.
    """
    listed = numbers_in(mount, writer)
    contents: dict[int, bytes | None] = {}
    for number in sorted(before.there)[-most:]:
        try:
            contents[number] = path_of(mount, writer, number).read_bytes()
        except FileNotFoundError:
            contents[number] = None
    if not directory_of(mount, writer).exists():
        raise OSError(errno.ENOTCONN, f"not mounted: {mount}")
    still = before.there & after().there
    place, lost, wrong = directory_of(mount, writer), [], []
    missed = {number for number, content in contents.items() if content is None}
    if lacking := sorted(still & ((before.there - listed) | missed)):
        lost.append(f"{place}: not there: {lacking[:10]} ({len(lacking)})")
    if back := sorted(before.gone & listed):
        wrong.append(f"{place}: removed, and back: {back[:10]} ({len(back)})")
    for number, content in contents.items():
        if content is not None and content != content_of(number, writer):
            wrong.append(
                f"{path_of(mount, writer, number)}: {len(content)} bytes, and others than it was made with"
            )
    return Found(listed, lost, wrong)
