"""A request takes no longer than its class may, whatever calls it makes: their deadlines do not add up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fusefs import patience as module
from fusefs.operations.limits import limit_seconds
from fusefs.patience import Patience
from fusefs.remote import RemoteBlocks, RemoteNamespace
from fusefs.session import Session
from wire.blocking import LEAST_SECONDS
from wire.config import Deadlines
from wire.errors import DeadlineExceeded, QuorumfsError, SessionUnknown, Unavailable
from wire.messages import AttributeChanges, Attributes, Commit, FileLock, SessionInfo

DEADLINES = Deadlines(metadata_seconds=12.0, read_seconds=8.0, write_seconds=12.0)
ANSWER = Attributes(2, 0o100644, 1, 0, 0, 4, 0, 0, 0, 0, 0, 1)


class Time:
    """The clock of a test, which passes only as calls take."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(module, "time", made)
    return made


class Slow:
    """Servers that use all the time a call has, or nearly; `outcomes` says what comes of each."""

    def __init__(self, time: Time, outcomes: Callable[[str], Iterator[Any]]) -> None:
        self._time, self._outcomes = time, outcomes
        self._of: dict[str, Iterator[Any]] = {}
        self.calls: list[tuple[str, float]] = []

    def call(self, seconds: float, method: Any, *_: Any) -> Any:
        name = method.__name__
        self.calls.append((name, seconds))
        self._time.now += seconds
        outcome = next(self._of.setdefault(name, self._outcomes(name)))
        if isinstance(outcome, QuorumfsError):
            raise outcome
        return outcome

    def forget_outages(self) -> None: ...


def always_expired(name: str) -> Iterator[Any]:
    """Have the session expire again and again, as while the metadata is put back several times."""
    number = 1
    while True:
        number += 1
        if name == "open_session":
            yield SessionInfo(number, number, 30_000, b"")
        elif name in ("reclaim", "tell_open", "settle"):
            yield None
        else:
            yield SessionUnknown("it expired")


def mount_of(client: Slow, patience: Patience) -> RemoteNamespace:
    session = Session(client, DEADLINES, "a test", patience)  # type: ignore[arg-type]
    session.number = session.epoch = 1
    session.lose_locks = lambda: False
    return RemoteNamespace(client, session, DEADLINES, patience)  # type: ignore[arg-type]


LOCK = FileLock(2, False, 7, 0, 9, True, 1)
REQUESTS: dict[str, tuple[str, Callable[[RemoteNamespace], Any]]] = {
    "mkdir": ("mkdir", lambda namespace: namespace.create(1, b"d", 0o40755, 0, 0, 0, b"", False)),
    "unlink": ("unlink", lambda namespace: namespace.unlink(1, b"a")),
    "getattr": ("getattr", lambda namespace: namespace.getattr(2)),
    "setlk": ("setlk", lambda namespace: namespace.set_lock(LOCK)),
    "open": ("open", lambda namespace: namespace.open(2, False, 2, [])),
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_calls_of_a_request_share_its_time(time: Time, request_name: str) -> None:
    operation, ask = REQUESTS[request_name]
    patience = Patience("fail", DEADLINES)
    client = Slow(time, always_expired)
    namespace = mount_of(client, patience)
    limit, begun = limit_seconds(operation, DEADLINES), time.now
    patience.begin(limit)
    for _ in range(3):
        with pytest.raises(QuorumfsError):
            ask(namespace)
    patience.done()
    in_time, late = [], []
    spent = 0.0
    for name, seconds in client.calls:
        (in_time if spent < limit else late).append((name, seconds))
        spent += seconds
    assert time.now - begun == spent
    assert sum(seconds for _, seconds in in_time) <= limit + LEAST_SECONDS
    assert late, "as many calls were made as before"
    assert {seconds for _, seconds in late} == {LEAST_SECONDS}


def test_what_failed_for_want_of_time_is_not_told_to_others_who_have_more(time: Time) -> None:
    """Who settles calls of unknown outcome does it for all who wait, and tells them why he could not."""

    def silent(name: str) -> Iterator[Any]:
        while True:
            yield DeadlineExceeded("no answer") if name == "settle" else Unavailable("it broke")

    patience = Patience("fail", DEADLINES)
    client = Slow(time, silent)
    namespace = mount_of(client, patience)
    with pytest.raises(Unavailable):
        namespace.create(1, b"d", 0o40755, 0, 0, 0, b"", False)  # nobody knows what came of it
    for limit, told in ((3.0, False), (60.0, True)):
        namespace._session._not_settled = None
        patience.begin(limit)
        with pytest.raises(DeadlineExceeded):
            namespace.getattr(2)
        patience.done()
        assert (namespace._session._not_settled is not None) == told


def test_what_is_written_has_its_whole_time_and_so_has_what_comes_after_it(time: Time) -> None:
    """As at the end of an fsync of very much, on slow disks: nobody was away."""

    def well(_name: str) -> Iterator[Any]:
        while True:
            yield ANSWER

    patience = Patience("fail", DEADLINES)
    client = Slow(time, well)
    namespace = mount_of(client, patience)
    blocks = RemoteBlocks(client, namespace._session, DEADLINES, patience)  # type: ignore[arg-type]
    patience.begin(limit_seconds("fsync", DEADLINES))
    time.now += 300.0  # blocks are put in the background
    blocks.write_file(2, Commit(None, [], 0, [], AttributeChanges(), True), [], None)
    namespace.sync_metadata()
    blocks.sync_blocks([bytes(16)])
    namespace.sync_metadata()
    assert [seconds for _, seconds in client.calls] == [12.0] * 4
    assert patience.left(12.0) == LEAST_SECONDS


def test_only_the_thread_that_answers_a_request_is_limited(time: Time) -> None:
    patience = Patience("fail", DEADLINES)
    patience.begin(5.0)
    time.now += 4.5
    assert patience.left(30.0) == LEAST_SECONDS
    assert patience.left(0.2) == 0.2
    assert not patience.is_over()
    time.now += 0.5
    assert patience.is_over()
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.extend((patience.left(30.0), patience.is_over())))
    thread.start()
    thread.join()
    assert others == [30.0, False]
    patience.done()
    assert (patience.left(30.0), patience.is_over()) == (30.0, False)


def test_where_calls_wait_for_servers_nothing_is_limited(time: Time) -> None:
    patience = Patience("wait", DEADLINES)
    patience.begin(5.0)
    time.now += 60.0
    assert (patience.left(30.0), patience.is_over()) == (30.0, False)


@pytest.mark.parametrize(
    ("operation", "seconds"),
    [("lookup", 12.0), ("rename", 12.0), ("getxattr", 12.0), ("setlk", 24.0), ("flock", 24.0), ("read", 20.0)]
    + [(name, 36.0) for name in ("write", "flush", "fsync", "release", "setattr", "fallocate")],
)
def test_how_long_a_request_may_take(operation: str, seconds: float) -> None:
    assert limit_seconds(operation, DEADLINES) == seconds
