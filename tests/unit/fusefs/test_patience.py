"""Who waits for servers that are away, about what, and what ends the wait."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from fusefs import patience as module
from fusefs.patience import Patience, is_away
from wire.errors import (
    DeadlineExceeded,
    Interrupted,
    NoSpace,
    NotFound,
    QuorumfsError,
    ReadRefused,
    Unavailable,
    WriteRefused,
)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (Unavailable(), True),
        (DeadlineExceeded(), True),
        (WriteRefused(), True),
        (NoSpace(), False),
        (NotFound(), False),
        (ReadRefused("", {"votes": {"1": "good", "2": "down"}}), True),
        (ReadRefused("", {"votes": {"1": "corrupt", "2": "missing"}}), False),
        (ReadRefused("", {"votes": {"1": "down"}, "reason": "superseded"}), False),
    ],
)
def test_only_servers_that_may_come_back_are_waited_for(error: QuorumfsError, away: bool) -> None:
    assert is_away(error) == away


class Calls:
    """A call that fails so often."""

    def __init__(self, failures: int) -> None:
        self.made, self.failures = 0, failures

    def __call__(self) -> int:
        self.made += 1
        if self.made <= self.failures:
            raise Unavailable(f"away, call {self.made}")
        return self.made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.002)


def test_a_call_is_made_again_until_it_succeeds() -> None:
    assert Patience("wait").persist(Calls(3)) == 4
    with pytest.raises(Unavailable, match="call 1"):
        Patience("fail").persist(Calls(3))


def test_an_error_after_a_first_try_says_that_the_call_was_sent_before() -> None:
    answers: list[QuorumfsError] = [Unavailable(), NotFound()]

    def call() -> None:
        raise answers.pop(0)

    with pytest.raises(NotFound) as found:
        Patience("wait").persist(call)
    assert found.value.resent


def test_a_signal_and_the_end_of_the_mount_end_the_wait() -> None:
    patience, calls = Patience("wait"), Calls(10**6)
    with patience.asked(lambda: calls.made > 2), pytest.raises(Interrupted):
        patience.persist(calls)
    threading.Timer(0.05, patience.end).start()
    with pytest.raises(Unavailable):
        patience.persist(calls)
    with patience.asked(lambda: True), pytest.raises(Unavailable):
        patience.persist(calls)  # nobody waits any more


def test_only_so_many_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    patience = Patience("wait")
    with patience.asked(lambda: False), pytest.raises(Unavailable, match="call 1"):
        patience.persist(Calls(1))
    assert patience.persist(Calls(1)) == 2, "threads that answer no request are not counted"


def test_work_goes_on_when_the_request_that_waits_for_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.01)
    patience, future = Patience("wait"), Future[int]()
    with patience.asked(lambda: True), pytest.raises(Interrupted):
        patience.result_of(future)
    future.set_result(7)
    assert patience.result_of(future) == 7
