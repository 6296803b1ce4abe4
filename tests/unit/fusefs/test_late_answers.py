"""An answer that the kernel got late, since this process was stopped: what it said is taken back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

lowlevel = pytest.importorskip("fusefs.operations.lowlevel")


class Kernel:
    """Stands for libfuse: notes what is to be forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[Any, ...]] = []

    def drop_entry(self, _session: int, parent: int, name: bytes, length: int) -> None:
        assert length == len(name)
        self.forgotten.append((parent, name))

    def drop_pages(self, _session: int, ino: int, offset: int, _length: int) -> None:
        assert offset == -1, "its attributes only: pages may be locked"
        self.forgotten.append((ino,))


class Keeping:
    def __init__(self, covers: bool) -> None:
        self._covers = covers

    def covers(self, _seconds: float) -> bool:
        return self._covers


@pytest.mark.parametrize(("covered", "seconds"), [(True, 1.0), (False, 1.0), (False, 0.0)])
def test_what_was_told_too_late_is_forgotten(covered: bool, seconds: float) -> None:
    mount = lowlevel.Mount.__new__(lowlevel.Mount)
    mount._library, mount._keeping, mount._session = Kernel(), Keeping(covered), 1
    mount._check_kept(seconds, (7, b"a", 8), (0, b"", 9), (7, b"gone", 0))
    for thread in threading.enumerate():
        if thread.name == "late":
            thread.join(5)
    late = seconds > 0 and not covered
    assert mount._library.forgotten == ([(7, b"a"), (8,), (9,), (7, b"gone")] if late else [])
