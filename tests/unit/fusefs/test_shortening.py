"""When an answer to a read of pages would have the kernel show zeros that no file has."""

from __future__ import annotations

import pytest

from fusefs.operations import shortening
from fusefs.operations.shortening import Shortenings

PAGE = 4096


class Clock:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(shortening, "time", made)
    return made


def test_while_it_becomes_shorter_no_short_answer_is_right(clock: Clock) -> None:
    files = Shortenings()
    with files.shortening(7):
        assert files.misleads(7, 0, PAGE, 100)
        assert not files.misleads(8, 0, PAGE, 100), "another file"
        with files.shortening(7):
            pass
        assert files.misleads(7, 0, PAGE, 100), "the first is under way still"


def test_after_the_answer_only_who_asks_beyond_the_last_page_does_not_know_it(clock: Clock) -> None:
    files = Shortenings()
    with files.shortening(7):
        pass
    assert files.misleads(7, 0, PAGE, 0)
    assert files.misleads(7, 0, 3 * PAGE, 2 * PAGE)
    assert files.misleads(7, PAGE, 3 * PAGE, PAGE + 1)
    assert clock.slept == 0.0
    assert not files.misleads(7, 0, PAGE, 100)
    assert clock.slept == pytest.approx(shortening.SETTLING_SECONDS), (
        "the thread that waits for it comes first"
    )
    assert not files.misleads(7, 0, 3 * PAGE, 2 * PAGE + 1)
    assert clock.slept == pytest.approx(shortening.SETTLING_SECONDS)
    clock.now += shortening.TAKEN_IN_SECONDS
    assert not files.misleads(7, 0, PAGE, 0)


def test_a_failed_one_ends_too(clock: Clock) -> None:
    files = Shortenings()
    with pytest.raises(OSError, match="no"), files.shortening(7):
        raise OSError("no")
    clock.now += 2 * shortening.TAKEN_IN_SECONDS
    assert not files.misleads(7, 0, PAGE, 0)
