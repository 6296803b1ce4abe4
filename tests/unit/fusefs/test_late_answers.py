"""An answer that the kernel got late, since this process was stopped: what it said is taken back."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from fusefs.operations import late


class Kernel:
    """Stands for libfuse: notes what is to be forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[Any, ...]] = []

    def drop_entry(self, session: int, parent: int, name: bytes, length: int) -> None:
        assert (session, length) == (1, len(name))
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
    kernel = Kernel()
    answers = late.LateAnswers(cast(Any, kernel), cast(Any, Keeping(covered)))
    answers.session = 1
    with answers:
        answers.check(seconds, (7, b"a", 8), (0, b"", 9), (7, b"gone", 0))
    is_late = seconds > 0 and not covered
    assert kernel.forgotten == ([(7, b"a"), (8,), (9,), (7, b"gone")] if is_late else [])


def test_it_is_forgotten_although_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after its answer would have the request answered twice, which crashes the mount."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    kernel = Kernel()
    answers = late.LateAnswers(cast(Any, kernel), cast(Any, Keeping(covers=False)))
    answers.session = 1
    with answers:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        answers.check(1.0, (0, b"", 9))
    assert kernel.forgotten == [(9,)]
