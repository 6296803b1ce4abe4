"""The mount's session: what it concludes from heartbeats. The mediator is a list of answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fusefs.patience import Patience
from fusefs.remote import RemoteNamespace
from fusefs.session import SLOTS, Session
from metaserver.locks import LOCKS_A_SESSION_MAX
from tests.support import wait_until
from wire import xml_codec
from wire.config import Deadlines
from wire.errors import (
    DeadlineExceeded,
    Interrupted,
    NoSpace,
    NotFound,
    QuorumfsError,
    SessionUnknown,
    StaleEpoch,
    Unavailable,
    WriteRefused,
)
from wire.locks import LAST
from wire.messages import FileLock, Heartbeat, LockHolder, SessionInfo, Ticket
from wire.methods import MediatorMethods, NamespaceMethods
from wire.msgpack_codec import Decoder, Encoder, Workbench
from wire.server import MAX_MESSAGE_BYTES
from wire.table import method_of

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


class SilentMediator:
    """Leaves heartbeats unanswered until `ended` is set; then each is late."""

    def __init__(self) -> None:
        self.beats = 0
        self.ended = threading.Event()

    def call_once(self, *_arguments: Any) -> Heartbeat:
        self.beats += 1
        assert self.ended.wait(60.0)
        raise DeadlineExceeded("no answer")


class CountedLock:
    """Counts the threads that have come to a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.came = 0

    def __enter__(self) -> None:
        self.came += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_threads_that_ask_at_once_wait_for_one_heartbeat_more_not_for_one_each() -> None:
    """While a mount was cut off, the last of sixteen that read under locks waited for sixteen deadlines."""
    client = SilentMediator()
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session._beating = lock = CountedLock()  # type: ignore[assignment]
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(session.confirm) for _ in range(8)]
        wait_until(lambda: lock.came == 8, 10.0, "all have asked")
        client.ended.set()
    assert all(isinstance(one.exception(), Unavailable) for one in asked)
    assert client.beats == 2


class Sleep:
    """Has the machine sleep: the monotonic clock stands still meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        at = time.monotonic()
        clocks = {time.CLOCK_BOOTTIME: lambda: at + self.seconds, time.CLOCK_MONOTONIC: lambda: at}
        monkeypatch.setattr(time, "clock_gettime", lambda clock: clocks[clock]())
        monkeypatch.setattr(time, "monotonic", lambda: at)


def test_a_mount_that_slept_does_not_rely_on_what_it_was_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counted its locks as its own for a lease after it woke, and itself as alone for a grant."""
    sleep = Sleep(monkeypatch)
    session, client = session_of(UP._replace(alone_ms=2_000), Unavailable("the network is not up yet"))
    session._lease_seconds = 27.0
    session._beat()
    session.confirm()
    assert session.grant.era()
    assert session.is_alone()
    sleep.seconds = 3600.0
    assert not session.grant.era()
    assert not session.is_alone()
    with pytest.raises(Unavailable, match="longer than its lease"):
        session.confirm()
    assert not client.answers


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


class OneFailure:
    """Fails the first unlink and the first calls to settle; keeps what it was asked."""

    def __init__(self, failure: QuorumfsError, *unsettled: QuorumfsError) -> None:
        self.failures: list[QuorumfsError] = [failure]
        self.unsettled = list(unsettled)
        self.asked: list[tuple[str, Any]] = []

    def call(self, _deadline_seconds: float, method: Any, *arguments: Any) -> Any:
        if method is NamespaceMethods.open_session:
            return SessionInfo(7, 30_000, 1)
        self.asked.append((method.__name__, arguments[0]))
        failures = {NamespaceMethods.unlink: self.failures, NamespaceMethods.settle: self.unsettled}
        if waiting := failures.get(method):
            raise waiting.pop(0)
        return None

    def call_once(self, seconds: float, method: Any, *arguments: Any) -> Any:
        if method is MediatorMethods.heartbeat:
            return UP
        return self.call(seconds, method, *arguments)

    def forget_outages(self) -> None: ...


def mount_of(client: OneFailure) -> tuple[Session, RemoteNamespace]:
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session.begin(5.0)
    return session, RemoteNamespace(client, session, Deadlines(), Patience())  # type: ignore[arg-type]


def fails(namespace: RemoteNamespace, error: type[QuorumfsError]) -> None:
    with pytest.raises(error):
        namespace.unlink(1, b"a")


@pytest.mark.parametrize("unknown", [DeadlineExceeded, Unavailable, Interrupted])
def test_after_an_unknown_outcome_a_look_waits_until_it_is_settled(unknown: type[QuorumfsError]) -> None:
    client = OneFailure(unknown("gone"))
    session, namespace = mount_of(client)
    fails(namespace, unknown)
    session.grant.extend(time.monotonic(), 10.0)
    assert not session.is_alone()
    namespace.getattr(5)
    (_, failed), settled, *looks = client.asked
    assert settled == ("settle", failed._replace(sequence=failed.sequence + 1))
    assert looks == [("getattr", 5)]
    namespace.getattr(6)
    assert client.asked[-2:] == [("getattr", 5), ("getattr", 6)], "it is settled once"
    session.grant.extend(time.monotonic(), 10.0)
    assert session.is_alone()


def test_a_change_waits_for_it_too() -> None:
    client = OneFailure(DeadlineExceeded("late"))
    _, namespace = mount_of(client)
    fails(namespace, DeadlineExceeded)
    namespace.unlink(1, b"a")
    assert [name for name, _ in client.asked] == ["unlink", "settle", "unlink"]


def test_who_was_certainly_refused_has_nothing_to_settle() -> None:
    client = OneFailure(NotFound("a"))
    _, namespace = mount_of(client)
    fails(namespace, NotFound)
    namespace.getattr(5)
    assert client.asked[1:] == [("getattr", 5)]


def test_nothing_is_asked_while_it_cannot_be_settled() -> None:
    client = OneFailure(Unavailable("gone"), Unavailable("gone"), Unavailable("gone"))
    _, namespace = mount_of(client)
    fails(namespace, Unavailable)
    with pytest.raises(Unavailable):
        namespace.getattr(5)
    fails(namespace, Unavailable)
    namespace.getattr(5)
    assert [name for name, _ in client.asked] == ["unlink", "settle", "settle", "settle", "getattr"]


class CountedSemaphore(threading.Semaphore):
    """Counts the threads that have come to a semaphore."""

    came = 0

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        taken = super().acquire(blocking=False)
        if not taken:
            self.came += 1
            taken = super().acquire(timeout=60.0)
        return taken


def test_threads_that_wait_for_calls_to_be_settled_do_not_add_up_their_deadlines() -> None:
    """While the metadata server hung, most of twelve waited for a whole deadline, and were told EIO."""
    client, ended, tried = OneFailure(DeadlineExceeded("late")), threading.Event(), []
    session, namespace = mount_of(client)
    fails(namespace, DeadlineExceeded)
    session._settling = semaphore = CountedSemaphore()

    def hang(_deadline_seconds: float, method: Any, *_arguments: Any) -> None:
        assert method is NamespaceMethods.settle
        tried.append(method)
        assert ended.wait(60.0)
        raise DeadlineExceeded("no answer in time")

    client.call = hang  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(namespace.getattr, 5) for _ in range(8)]
        wait_until(lambda: semaphore.came == 7, 10.0, "all others wait")
        ended.set()
    errors = [one.exception() for one in asked]
    assert all(isinstance(error, DeadlineExceeded) for error in errors)
    assert len(set(map(id, errors))) == 8
    assert len(tried) == 2
    client.call = lambda *_arguments: None  # type: ignore[method-assign, assignment]
    namespace.getattr(5)
    assert not session._unsettled


def test_a_server_that_takes_no_change_is_looked_at_nevertheless() -> None:
    client = OneFailure(Unavailable("gone"), NoSpace("full"))
    session, namespace = mount_of(client)
    fails(namespace, Unavailable)
    namespace.getattr(5)
    session.grant.extend(time.monotonic(), 10.0)
    assert not session.is_alone()
    namespace.getattr(6)
    assert [name for name, _ in client.asked] == ["unlink", "settle", "getattr", "settle", "getattr"]


def test_nothing_of_a_session_that_is_gone_is_carried_out() -> None:
    client = OneFailure(Unavailable("gone"), SessionUnknown("expired"))
    _, namespace = mount_of(client)
    fails(namespace, Unavailable)
    namespace.getattr(5)
    namespace.getattr(6)
    assert [name for name, _ in client.asked] == ["unlink", "settle", "getattr", "getattr"]


def test_a_heartbeat_settles_what_nobody_asks_about() -> None:
    client = OneFailure(Unavailable("gone"), Unavailable("gone"))
    session, namespace = mount_of(client)
    fails(namespace, Unavailable)
    session._beat()
    session._beat()
    session._beat()
    assert [name for name, _ in client.asked] == ["unlink", "settle", "settle"]


def test_slots_of_unknown_outcome_come_back() -> None:
    failures = [Unavailable("gone")] * (2 * SLOTS)
    client = OneFailure(failures[0])
    _, namespace = mount_of(client)
    for _ in failures:
        client.failures = [Unavailable("gone")]
        fails(namespace, Unavailable)
    namespace.unlink(1, b"a")


class OneHolder:
    """Begins sessions; the second one is told who holds a lock, the first one that it has expired."""

    def __init__(self, holder: int) -> None:
        self.holder = holder
        self.sessions = 0

    def call(self, _deadline_seconds: float, method: Any, *arguments: Any) -> Any:
        if method is NamespaceMethods.open_session:
            self.sessions += 1
            return SessionInfo(self.sessions, 30_000, 1)
        if method is NamespaceMethods.get_lock:
            session, lock = arguments
            if session == 1:
                raise SessionUnknown("it has expired")
            return LockHolder(self.holder, "a mount", lock)
        return None


@pytest.mark.parametrize(("holder", "pid"), [(2, 77), (3, 0)])
def test_who_holds_a_lock_is_told_after_the_session_has_expired(holder: int, pid: int) -> None:
    client = OneHolder(holder)
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session.begin(5.0)
    namespace = RemoteNamespace(client, session, Deadlines(), Patience())  # type: ignore[arg-type]
    found = namespace.get_lock(FileLock(9, False, 1, 0, LAST, True, 77))
    assert found is not None
    assert found.lock.pid == pid


class Restarted:
    """Is sent what a session says after a restart, as a server would receive it; keeps the calls."""

    def __init__(self, rpc: str) -> None:
        self.rpc = rpc
        self.calls: list[tuple[str, list[Any]]] = []

    def call(self, _deadline_seconds: float, method: Any, *arguments: Any) -> None:
        spec = method_of(method)
        self.calls.append(
            (spec.name, spec.arguments(self._received(spec.name, spec.positional(arguments, {}))))
        )

    call_once = call

    def _received(self, name: str, params: list[Any]) -> Any:
        if self.rpc == "xml":
            body = xml_codec.pack_request(name, params)
            assert len(body) <= MAX_MESSAGE_BYTES
            return xml_codec.unpack_request(body)[1]
        data = b"".join(Encoder().request(1, name, params))
        decoder = Decoder(Workbench(MAX_MESSAGE_BYTES, strict=True))
        while (message := decoder.next()) is None:
            count = min(len(data), len(decoder.room()))
            decoder.room()[:count] = data[:count]
            decoder.received(count)
            data = data[count:]
        return message[3]


@pytest.mark.parametrize("rpc", ["msgpack", "xml"])
@pytest.mark.parametrize("how", ["reclaim", "asked", "by itself"])
def test_however_much_is_open_and_locked_is_told(rpc: str, how: str) -> None:
    """A message has a bound; that all has been said is said last."""
    client = Restarted(rpc)
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    inodes = list(range(2**62, 2**62 + 70_000))
    held = [
        FileLock(2**62, False, 2**63 - 1, 2**62 + 2 * number, 2**62 + 2 * number, True, 2**31)
        for number in range(LOCKS_A_SESSION_MAX)
    ]
    if how == "reclaim":
        session.open_inodes, session.held_locks = lambda: inodes, lambda epoch: held
        session._reclaim(5)
        assert client.calls[-1][0] == "reclaim" and client.calls[-1][1][1] == 5
        assert [lock for name, params in client.calls if name == "reclaim" for lock in params[3]] == held
        told = [params[2] if name == "reclaim" else params[1] for name, params in client.calls]
    else:
        namespace = RemoteNamespace(client, session, Deadlines(), Patience())  # type: ignore[arg-type]
        namespace.tell_open(inodes, 9 if how == "asked" else 0)
        assert [params[2] for _, params in client.calls][-1] == (9 if how == "asked" else 0)
        assert not any(params[2] for _, params in client.calls[:-1])
        told = [params[1] for _, params in client.calls]
    assert [ino for some in told for ino in some] == inodes


class Expiring:
    """Begins sessions, session n at epoch n; keeps what it is told of open files.

    Attributes:
        failures: what the next calls that tell of open files end with.
        before_answer: done while a heartbeat is under way.
    """

    def __init__(self, *failures: QuorumfsError) -> None:
        self.failures = list(failures)
        self.sessions = 0
        self.told: list[tuple[int, int, list[int]]] = []
        self.before_answer: Callable[[], None] = lambda: None

    def call(self, _deadline_seconds: float, method: Any, *arguments: Any) -> Any:
        if method is NamespaceMethods.open_session:
            self.sessions += 1
            return SessionInfo(self.sessions, 30_000, self.sessions)
        assert method is NamespaceMethods.reclaim
        session, epoch, inodes, _, _ = arguments
        if self.failures:
            raise self.failures.pop(0)
        if epoch != self.sessions:
            raise StaleEpoch("the server was restarted since")
        self.told.append((session, epoch, inodes))
        return None

    def call_once(self, _deadline_seconds: float, _method: Any, session: int) -> Heartbeat:
        self.before_answer()
        return UP._replace(epoch=session)

    def forget_outages(self) -> None: ...


def test_what_a_new_session_could_not_be_told_is_told_by_a_heartbeat() -> None:
    """Else the server would let go of removed files that are open here."""
    client = Expiring(Unavailable("the connection broke"), DeadlineExceeded("no answer in time"))
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session.open_inodes = lambda: [11, 12]
    session.begin(5.0)
    with pytest.raises(Unavailable):
        session.renew_after(1)
    session._beat()
    assert not client.told
    session._beat()
    session._beat()
    assert client.told == [(2, 2, [11, 12])]


def test_a_late_answer_of_a_session_that_is_gone_says_nothing_of_the_next_one() -> None:
    """It was taken for a restart: with the old epoch no lock could be had any more."""
    client = Expiring()
    session = Session(client, Deadlines(), "a test", Patience())  # type: ignore[arg-type]
    session.begin(5.0)
    client.before_answer = lambda: session.renew_after(1)
    session._beat()
    assert (session.number, session.epoch) == (2, 2)
