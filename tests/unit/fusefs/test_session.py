"""The mount's session: what it concludes from heartbeats. The mediator is a list of answers."""

from __future__ import annotations

from typing import Any

import pytest

from fusefs.patience import Patience
from fusefs.remote import RemoteNamespace
from fusefs.session import Session
from wire.config import Deadlines
from wire.errors import SessionUnknown, Unavailable, WriteRefused
from wire.messages import Heartbeat, SessionInfo, Ticket
from wire.methods import NamespaceMethods

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

    def forget_outages(self) -> None: ...


def session_of(*answers: Heartbeat | Exception) -> tuple[Session, Heartbeats]:
    client = Heartbeats(*answers)
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session._reclaimed_at = 1
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


class OneUnlink:
    """Begins sessions, and answers an unlink of the first one by SessionUnknown."""

    def __init__(self, resent: bool) -> None:
        self.resent = resent
        self.tickets: list[Ticket] = []
        self.sessions = 0

    def call(self, _deadline_seconds: float, method: Any, *arguments: Any) -> Any:
        if method is NamespaceMethods.open_session:
            self.sessions += 1
            return SessionInfo(self.sessions, 30_000, 1)
        if method is NamespaceMethods.unlink:
            self.tickets.append(arguments[0])
            if len(self.tickets) == 1:
                error = SessionUnknown("it has expired")
                error.resent = self.resent
                raise error
        return None


@pytest.mark.parametrize("resent", [False, True])
def test_a_call_that_a_dead_session_may_have_made_is_not_made_again(resent: bool) -> None:
    client = OneUnlink(resent)
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session.begin(5.0)
    namespace = RemoteNamespace(client, session, Deadlines(), Patience())  # type: ignore[arg-type]
    if resent:
        with pytest.raises(SessionUnknown):
            namespace.unlink(1, b"a")
    else:
        namespace.unlink(1, b"a")
    assert [ticket.session for ticket in client.tickets] == ([1] if resent else [1, 2])
    assert session.number == 2
