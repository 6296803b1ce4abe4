"""Opening without a call: what the server is told of it, when, and what it is never told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from fusefs.handles import OpenInodes
from fusefs.inodes import Inode
from fusefs.patience import Patience
from tests.support import wait_until
from tests.unit.fusefs.test_cache import attributes_of
from wire.errors import Busy, DeadlineExceeded, Interrupted, StaleFile, Unavailable
from wire.messages import FileMap, Opened


class Server:
    """Notes what it is told. `hold` may be cleared to keep `tell_open` waiting."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[int]]] = []
        self.failure: Exception | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.entered = threading.Event()

    def tell_open(self, inodes: Sequence[int], asked: int) -> None:
        self.entered.set()
        assert self.hold.wait(10)
        if self.failure is not None:
            raise self.failure
        self.told.append((f"open {asked}", list(inodes)))

    def close(self, inodes: Sequence[int]) -> None:
        self.entered.set()
        assert self.hold.wait(10)
        self.told.append(("close", list(inodes)))

    def open(self, ino: int, writing: bool, start: int, names: Sequence[bytes]) -> Opened:
        if self.failure is not None:
            raise self.failure
        self.told.append(("opened", [ino]))
        return opened_of(ino)


def opened_of(ino: int) -> Opened:
    return Opened(attributes_of(ino), FileMap(1, 0, [], True))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def opens(server: Server) -> OpenInodes:
    return OpenInodes(server)  # type: ignore[arg-type]


def open_known(opens: OpenInodes, ino: int) -> Inode:
    inode = opens.open_known(opened_of(ino), lambda: True)
    assert inode is not None
    return inode


def test_what_is_closed_before_anybody_asked_is_never_told(opens: OpenInodes, server: Server) -> None:
    opens.release(open_known(opens, 5))
    opens.tell_closed()
    with opens.removing():
        pass
    assert server.told == []


def test_what_is_open_is_told_before_a_name_is_removed_and_closed_later(
    opens: OpenInodes, server: Server
) -> None:
    inode = open_known(opens, 5)
    assert opens.numbers() == [5]
    with opens.removing():
        assert server.told == [("open 0", [5])]
        assert opens.open_known(opened_of(6), lambda: True) is None
    with opens.removing():
        pass
    opens.release(inode)
    opens.tell_closed()
    assert server.told == [("open 0", [5]), ("close", [5])]
    assert opens.open_known(opened_of(6), lambda: True) is not None


def test_a_question_is_answered_even_if_nothing_is_open(opens: OpenInodes, server: Server) -> None:
    opens.tell_open(77)
    open_known(opens, 5)
    opens.tell_open(78)
    assert server.told == [("open 77", []), ("open 78", [5])]


def test_nothing_is_opened_without_a_call_that_is_not_right_or_is_open_already(opens: OpenInodes) -> None:
    assert opens.open_known(opened_of(5), lambda: False) is None
    open_known(opens, 5)
    assert opens.open_known(opened_of(5), lambda: True) is None


def test_one_whose_close_was_not_told_yet_is_open_at_the_server(opens: OpenInodes, server: Server) -> None:
    first, _ = opens.open(5, False, None, lambda *_: None)
    opens.release(first)
    second = open_known(opens, 5)
    opens.tell_closed()
    with opens.removing():
        pass
    opens.release(second)
    opens.tell_closed()
    assert server.told == [("opened", [5]), ("close", [5])]


def test_one_that_is_also_opened_at_the_server_is_closed_there(opens: OpenInodes, server: Server) -> None:
    inode = open_known(opens, 5)
    again, _ = opens.open(5, True, None, lambda *_: None)
    assert again is inode
    opens.release(inode)
    opens.release(again)
    opens.tell_closed()
    assert server.told == [("opened", [5]), ("close", [5])]


@pytest.mark.parametrize("failure", [Unavailable("gone"), DeadlineExceeded("late")])
def test_what_could_not_be_told_stops_a_removal_and_is_told_again(
    opens: OpenInodes, server: Server, failure: Exception
) -> None:
    inode = open_known(opens, 5)
    server.failure = failure
    with pytest.raises(type(failure)), opens.removing():
        raise AssertionError("no name may be removed now")
    server.failure = None
    with opens.removing():
        assert server.told == [("open 0", [5])]
    opens.release(inode)
    opens.tell_closed()
    assert server.told[-1] == ("close", [5])


def test_what_may_have_been_told_is_closed(opens: OpenInodes, server: Server) -> None:
    inodes = [open_known(opens, ino) for ino in (5, 6, 7)]
    server.failure = DeadlineExceeded("the call may still be carried out")
    with pytest.raises(DeadlineExceeded):
        opens.tell_open()
    server.failure = StaleFile("6 is gone")
    with pytest.raises(StaleFile):
        opens.open(6, False, None, lambda *_: None)
    for inode in inodes:
        opens.release(inode)
    opens.tell_closed()
    assert server.told == [("close", [5, 6, 7])]


def test_what_is_being_told_is_closed_afterwards_only(opens: OpenInodes, server: Server) -> None:
    inode = open_known(opens, 5)
    server.hold.clear()
    telling = threading.Thread(target=opens.tell_open)
    telling.start()
    assert server.entered.wait(5)
    opens.release(inode)
    opens.tell_closed()
    server.hold.set()
    telling.join(5)
    opens.tell_closed()
    assert server.told == [("open 0", [5]), ("close", [5])]


def test_a_second_removal_waits_until_the_first_has_told(opens: OpenInodes, server: Server) -> None:
    open_known(opens, 5)
    server.hold.clear()
    seen: list[int] = []

    def remove() -> None:
        with opens.removing():
            seen.append(len(server.told))

    threads = [threading.Thread(target=remove) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: opens._removing == 2, 5, "both are removing")
    with pytest.raises(Busy):
        opens.tell_open(9)  # a heartbeat does not wait for long
    assert seen == []
    server.hold.set()
    for thread in threads:
        thread.join(5)
    assert seen == [1, 1]
    opens.tell_open(9)
    assert server.told == [("open 0", [5]), ("open 9", [])]


@pytest.mark.parametrize("waits_for", ["a close", "another's telling"])
def test_who_waits_for_a_call_of_another_thread_is_interrupted(server: Server, waits_for: str) -> None:
    """With `unavailable = "wait"` that call may last for days."""
    patience = Patience("wait")
    opens = OpenInodes(server, patience.look)
    if waits_for == "a close":
        inode, _ = opens.open(5, False, None, lambda *_: None)
        opens.release(inode)
    else:
        open_known(opens, 5)
    server.hold.clear()

    def be_interrupted() -> None:
        with patience.asked(lambda: True):
            if waits_for == "a close":
                opens.open(5, False, None, lambda *_: None)
            else:
                with opens.removing():
                    raise AssertionError("no name may be removed now")

    with ThreadPoolExecutor() as threads:
        other = threads.submit(opens.tell_closed if waits_for == "a close" else opens.tell_open)
        assert server.entered.wait(10)
        interrupted = threads.submit(be_interrupted)
        done, _ = wait([interrupted], 5)
        server.hold.set()
        other.result(10)
        assert done, "it waits no longer than until a signal"
        assert isinstance(interrupted.exception(10), Interrupted)


def test_a_server_that_is_new_may_have_an_older_database(opens: OpenInodes) -> None:
    """What was durable before is known only at the server that was told so."""
    known = []
    for is_new in (False, False, True):
        if is_new:
            opens.numbers()
        inode = open_known(opens, 5)
        known.append(inode.durable_version)
        inode.durable_version = inode.base().version
        opens.release(inode)
    assert known == [-1, inode.base().version, -1]
