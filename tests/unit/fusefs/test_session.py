"""The mount's session: what it concludes from heartbeats. The mediator is a list of answers."""

from __future__ import annotations

from typing import Any

import pytest

from fusefs.session import Session
from wire.config import Deadlines
from wire.errors import Unavailable, WriteRefused
from wire.messages import Heartbeat

UP, DOWN = Heartbeat(1, True, ""), Heartbeat(1, False, "4 of 5 data servers are up")


class Heartbeats:
    """Answers each heartbeat with the next of a list."""

    def __init__(self, *answers: Heartbeat | Exception) -> None:
        self.answers = list(answers)

    def call_once(self, _deadline_seconds: float, _method: Any, _session: int) -> Heartbeat:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def session_of(*answers: Heartbeat | Exception) -> tuple[Session, Heartbeats]:
    client = Heartbeats(*answers)
    session = Session(client, Deadlines(), "a test")  # type: ignore[arg-type]
    session._epoch = 1
    return session, client


def test_a_refusal_does_not_rest_on_an_old_heartbeat() -> None:
    session, _ = session_of(DOWN, UP)
    session._beat()
    session.require_writable()


def test_a_refusal_says_the_reason_told_last() -> None:
    session, client = session_of(DOWN, DOWN)
    session._beat()
    with pytest.raises(WriteRefused, match="4 of 5"):
        session.require_writable()
    assert not client.answers


def test_a_refusal_stands_while_the_mediator_is_silent() -> None:
    session, _ = session_of(DOWN, Unavailable("gone"))
    session._beat()
    with pytest.raises(WriteRefused):
        session.require_writable()


def test_while_writes_are_possible_nothing_is_asked() -> None:
    session, client = session_of(UP, DOWN)
    session._beat()
    session.require_writable()
    assert client.answers == [DOWN]
