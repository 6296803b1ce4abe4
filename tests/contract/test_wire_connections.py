"""The life of connections, by every client and encoding: deadlines, breaks, restarts, draining."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contract.wire_support import (
    LogLines,
    LoopThread,
    make_caller,
    slow_server,
)
from tests.support import wait_until
from wire import client_xml
from wire.blocking import BlockingClient
from wire.blocking_links import MOST_ASIDE, Waiting
from wire.client import Client
from wire.client_msgpack import REFUSED_SECONDS, MsgpackLink
from wire.config import Encoding
from wire.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QuorumfsError,
    TransportError,
    Unavailable,
)
from wire.methods import BookkeepingMethods
from wire.server_msgpack import MOST_CALLS_IN_FLIGHT

XML_CONNECTIONS = 100
ENDLESS_SECONDS = 280.0
"""For what is not about time: less than a test may take, and more than it does on the busiest machine."""


def test_answers_come_out_of_order(loop: LoopThread, address: str, rpc: Encoding) -> None:
    _, server, real = slow_server(loop, address)

    async def scenario() -> list[int]:
        client = Client(real, rpc)
        order: list[int] = []

        async def one(milliseconds: int) -> None:
            order.append(await client.call(5, BookkeepingMethods.renew, milliseconds))

        await asyncio.gather(*[one(number) for number in (300, 150, 1)])
        await client.close()
        await server.drain()
        return order

    assert loop.run(scenario()) == [1, 150, 300]


def test_many_more_calls_than_may_be_in_flight(
    loop: LoopThread, rpc: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many come at once here: more than the server's backlog has room for are reset if it is slow.
    monkeypatch.setattr(client_xml, "MOST_CONNECTIONS", XML_CONNECTIONS)
    slow, server, real = slow_server(loop, request_seconds=ENDLESS_SECONDS)

    async def scenario() -> None:
        client = Client(real, rpc, connect_seconds=ENDLESS_SECONDS)
        numbers = [20 + number % 7 for number in range(1500)]
        calls = [client.call(ENDLESS_SECONDS, BookkeepingMethods.renew, number) for number in numbers]
        assert await asyncio.gather(*calls) == numbers
        await client.close()
        await server.drain()

    loop.run(scenario(), ENDLESS_SECONDS)
    assert len(slow.begun) == 1500
    assert 1 < slow.most_at_once <= (MOST_CALLS_IN_FLIGHT if rpc == "msgpack" else XML_CONNECTIONS)


def test_a_deadline_passes_and_the_connection_serves_on(kind: str, loop: LoopThread, rpc: Encoding) -> None:
    _, server, real = slow_server(loop)
    caller = make_caller(kind, loop, real, rpc)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        caller.call(0.15, BookkeepingMethods.renew, 600)
    assert time.monotonic() - begin < 0.6
    assert caller.call(5, BookkeepingMethods.renew, 1) == 1
    time.sleep(0.6)  # the late answer has come: it must not be taken for another call's
    assert caller.call(5, BookkeepingMethods.renew, 2) == 2
    caller.close()
    loop.run(server.drain())


def test_a_refused_connection_is_unavailable_at_once(
    kind: str, loop: LoopThread, rpc: Encoding, tmp_path: Path
) -> None:
    _, server, real = slow_server(loop)
    loop.run(server.drain())
    for gone in (real, f"unix:{tmp_path}/nothing"):
        caller = make_caller(kind, loop, gone, rpc)
        begin = time.monotonic()
        for _ in range(3):
            with pytest.raises(Unavailable):
                caller.call(5, BookkeepingMethods.renew, 1)
        assert time.monotonic() - begin < 4  # less than one deadline
        caller.close()


def test_calls_share_one_attempt_to_connect(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts: list[int] = []
    connect = MsgpackLink._connect

    def counted(link: MsgpackLink) -> Any:
        attempts.append(1)
        return connect(link)

    monkeypatch.setattr(MsgpackLink, "_connect", counted)

    async def scenario() -> None:
        client = Client(f"unix:{tmp_path}/nothing")
        for _ in range(20):  # at once together, then shortly after each other
            calls = [client.call(5, BookkeepingMethods.renew, 1) for _ in range(10)]
            failures = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(failure) for failure in failures] == [Unavailable] * 10
        await client.close()

    begin = time.monotonic()
    loop.run(scenario())
    assert len(attempts) <= 1 + (time.monotonic() - begin) / REFUSED_SECONDS


def test_a_restarted_server_is_found_again(kind: str, loop: LoopThread, address: str, rpc: Encoding) -> None:
    _, server, real = slow_server(loop, address)
    caller = make_caller(kind, loop, real, rpc)
    assert caller.call(5, BookkeepingMethods.renew, 1) == 1
    for _ in range(3):
        loop.run(server.drain())
        _, server, _ = slow_server(loop, real)
        assert caller.call(5, BookkeepingMethods.renew, 1) == 1  # the stale connection costs no error
    caller.close()
    loop.run(server.drain())


def test_a_broken_connection_fails_all_calls_in_flight(loop: LoopThread, rpc: Encoding) -> None:
    slow, server, real = slow_server(loop)
    told: list[bool] = []

    async def scenario() -> list[Any]:
        client = Client(real, rpc, on_disconnect=lambda: told.append(True))
        await client.call(5, BookkeepingMethods.renew, 1)
        assert client.connected
        calls = [asyncio.create_task(client.call(20, BookkeepingMethods.renew, -1)) for _ in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(slow.begun) == 11, 5, "all calls have begun")
        await server.drain(0.1)
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert not client.connected
        await client.close()
        return failures

    assert [type(failure) for failure in loop.run(scenario())] == [Unavailable] * 10
    assert told == [True]


def test_draining_finishes_what_is_in_flight(
    kind: str, loop: LoopThread, address: str, rpc: Encoding
) -> None:
    slow, server, real = slow_server(loop, address)
    caller = make_caller(kind, loop, real, rpc)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(caller.call(10, BookkeepingMethods.renew, 400)))
    thread.start()
    wait_until(lambda: slow.begun, 5, "the call has begun")
    loop.run(server.drain())
    thread.join(5)
    assert results == [400]
    with pytest.raises(Unavailable):
        caller.call(1, BookkeepingMethods.renew, 1)
    caller.close()


def test_draining_waits_for_calls_whose_client_is_gone(loop: LoopThread, rpc: Encoding) -> None:
    """What a server closes after it drained may be in use by them: "sync failed by a defect ... closed"."""
    slow, server, real = slow_server(loop)

    async def scenario() -> bool:
        client = Client(real, rpc)
        call = asyncio.create_task(client.call(20, BookkeepingMethods.renew, 700))
        await asyncio.to_thread(wait_until, lambda: slow.begun, 5, "the call has begun")
        await client.close()
        with suppress(QuorumfsError):
            await call
        await server.drain()
        return not slow.now

    assert loop.run(scenario())


def test_the_blocking_client_sends_again_until_the_server_is_back(loop: LoopThread, rpc: Encoding) -> None:
    _, server, real = slow_server(loop)
    loop.run(server.drain())
    client = BlockingClient([real], rpc)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(client.call(10, BookkeepingMethods.renew, 5)))
    thread.start()
    time.sleep(0.3)  # some attempts fail
    assert not results
    _, server, _ = slow_server(loop, real)
    thread.join(5)
    assert results == [5]
    loop.run(server.drain())
    begin = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        client.call(0.3, BookkeepingMethods.renew, 5)
    assert time.monotonic() - begin < 1
    assert caught.value.resent
    with pytest.raises(Unavailable) as caught:
        client.call_once(0.3, BookkeepingMethods.renew, 5)
    assert not caught.value.resent
    client.close()


def test_an_answer_of_a_second_server_tells_that_the_first_had_the_call_too(
    loop: LoopThread, rpc: Encoding
) -> None:
    """The first may have passed it on, and lost the answer: what the second says is not all there is."""
    _, server, real = slow_server(loop)
    with socket.create_server(("127.0.0.1", 0)) as losing:

        def lose_an_answer() -> None:
            taken, _ = losing.accept()
            with taken:
                taken.recv(1 << 16)

        thread = threading.Thread(target=lose_an_answer)
        thread.start()
        client = BlockingClient([f"127.0.0.1:{losing.getsockname()[1]}", real], rpc)
        with pytest.raises(BadRequest) as caught:
            client.call(10, BookkeepingMethods.renew, "no number")  # type: ignore[arg-type]
        thread.join()
    assert caught.value.resent
    with pytest.raises(BadRequest) as caught:
        client.call(10, BookkeepingMethods.renew, "no number")  # type: ignore[arg-type]
    assert not caught.value.resent, "the first refuses connections now: nothing was sent there"
    client.close()
    loop.run(server.drain())


def test_calls_that_wait_for_each_other_do_not_add_up_their_deadlines(
    loop: LoopThread, rpc: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in a chaos run: a rename of 35 s, behind others in its directory that each took their 12 s."""
    monkeypatch.setattr("wire.blocking.LEAST_SECONDS", 0.1)
    _, server, real = slow_server(loop)
    loop.run(server.drain())
    client = BlockingClient([real], rpc)

    def seconds_of_a_call() -> float:
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            client.call(1.5, BookkeepingMethods.renew, 5)
        return time.monotonic() - begun

    assert seconds_of_a_call() > 1.0
    assert sum(seconds_of_a_call() for _ in range(5)) < 1.5
    _, server, _ = slow_server(loop, real)
    assert client.call(1.5, BookkeepingMethods.renew, 5) == 5
    loop.run(server.drain())
    assert seconds_of_a_call() > 1.0, "another outage"
    monkeypatch.setattr("wire.blocking.FORGOTTEN_SECONDS", 0.0)
    assert seconds_of_a_call() > 1.0, "the outage before was long ago"
    client.close()


def test_calls_that_hang_do_not_add_up_their_deadlines(
    loop: LoopThread, rpc: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.blocking.LEAST_SECONDS", 0.05)
    _, server, real = slow_server(loop)
    client = BlockingClient([real], rpc)

    def seconds_of_a_call() -> float:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.call(0.5, BookkeepingMethods.renew, 1000)
        return time.monotonic() - begun

    assert seconds_of_a_call() >= 0.5
    assert sum(seconds_of_a_call() for _ in range(4)) < 0.5
    client.forget_outages()
    assert seconds_of_a_call() >= 0.5, "a heartbeat was answered meanwhile"
    assert seconds_of_a_call() < 0.5
    assert client.call(0.5, BookkeepingMethods.renew, 5) == 5
    assert seconds_of_a_call() >= 0.5, "a call was answered meanwhile"
    client.close()
    loop.run(server.drain())


def test_the_blocking_client_tries_each_address(loop: LoopThread, rpc: Encoding, tmp_path: Path) -> None:
    _, server, real = slow_server(loop)
    client = BlockingClient([f"unix:{tmp_path}/nothing", real], rpc)
    assert client.call_once(5, BookkeepingMethods.renew, 3) == 3
    client.close()
    loop.run(server.drain())


def test_the_blocking_client_leaves_a_server_that_hangs(loop: LoopThread, rpc: Encoding) -> None:
    """With two mediators one was stopped: each call failed at its deadline, for as long as it was."""
    _, server, real = slow_server(loop)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = BlockingClient([f"127.0.0.1:{silent.getsockname()[1]}", real], rpc)
        assert client.call(4, BookkeepingMethods.renew, 3) == 3
        client.close()
        client = BlockingClient([f"127.0.0.1:{silent.getsockname()[1]}", real], rpc)
        with pytest.raises(BadRequest) as caught:
            client.call_once(4, BookkeepingMethods.renew, "no number")  # type: ignore[arg-type]
        assert caught.value.resent, "the one that hangs may carry it out yet"
        with pytest.raises(BadRequest) as caught:
            client.call_once(4, BookkeepingMethods.renew, "no number")  # type: ignore[arg-type]
        assert not caught.value.resent, "a refusal is an answer too: who gave it is asked first"
        client.close()
    loop.run(server.drain())


def test_threads_share_a_blocking_client(loop: LoopThread, rpc: Encoding) -> None:
    _, server, real = slow_server(loop)
    client = BlockingClient([real], rpc)
    wrong: list[Any] = []

    def many(first: int) -> None:
        for number in range(first, first + 30):
            if client.call(10, BookkeepingMethods.renew, number % 5) != number % 5:
                wrong.append(number)

    threads = [threading.Thread(target=many, args=(index * 30,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    client.close()
    with pytest.raises(Unavailable):
        client.call_once(1, BookkeepingMethods.renew, 1)
    loop.run(server.drain())


def test_a_call_that_comes_while_draining_may_be_sent_again(loop: LoopThread, rpc: Encoding) -> None:
    slow, server, real = slow_server(loop)

    async def scenario() -> None:
        client = Client(real, rpc)
        first = asyncio.create_task(client.call(10, BookkeepingMethods.renew, 300))
        await asyncio.to_thread(wait_until, lambda: slow.begun, 5, "the call has begun")
        drained = asyncio.create_task(server.drain())
        await asyncio.sleep(0.05)  # every connection has been told
        with pytest.raises(TransportError) as caught:
            await client.call(10, BookkeepingMethods.renew, 1)
        assert caught.value.temporary
        assert await first == 300
        await drained
        await client.close()

    loop.run(scenario())
    assert slow.begun == [300]


class Chores:
    """A duty: each byte is something to do; "1" is done at once."""

    def __init__(self, todo: bytes, endless: bool = False) -> None:
        self._source, self._sink = os.pipe()
        self._endless = endless
        os.write(self._sink, todo)
        self.done = b""
        self.passed_on = 0

    def descriptor(self) -> int:
        return self._source

    def pass_on(self) -> None:
        self.passed_on += 1

    def take_aside(self) -> bool:
        byte = os.read(self._source, 1)
        self.done += byte
        if self._endless:
            os.write(self._sink, byte)
        return byte == b"1"

    def close(self) -> None:
        os.close(self._source)
        os.close(self._sink)


@pytest.mark.parametrize(("todo", "done"), [(b"111", b"111"), (b"11x1", b"11x")])
def test_what_is_done_at_once_is_done_while_a_call_waits(loop: LoopThread, todo: bytes, done: bytes) -> None:
    _, server, real = slow_server(loop)
    chores = Chores(todo)
    client = BlockingClient([real], waiting=Waiting(duty=chores))
    assert client.call(5, BookkeepingMethods.renew, 150) == 150
    assert chores.done == done
    assert chores.passed_on == (todo == done)  # the rest of the wait is somebody else's
    client.close()
    chores.close()
    loop.run(server.drain())


def test_a_duty_without_end_holds_no_deadline_up(loop: LoopThread) -> None:
    _, server, real = slow_server(loop)
    chores = Chores(b"1", endless=True)
    client = BlockingClient([real], waiting=Waiting(duty=chores))
    with pytest.raises(DeadlineExceeded):
        client.call(0.1, BookkeepingMethods.renew, -1)
    assert (len(chores.done), chores.passed_on) == (MOST_ASIDE, 1)
    client.close()
    chores.close()
    loop.run(server.drain(0.1))


def test_a_call_that_cannot_even_be_sent_ends(
    loop: LoopThread, rpc: Encoding, monkeypatch: pytest.MonkeyPatch, log: LogLines
) -> None:
    async def fail(*_: Any) -> Any:
        raise UnicodeError("a name that no resolver takes")

    caller = make_caller("async", loop, "127.0.0.1:1", rpc)
    monkeypatch.setattr(MsgpackLink, "_connect", fail)
    monkeypatch.setattr(client_xml.XmlLink, "_post", fail)
    with pytest.raises(InternalError, match="no resolver takes"):
        caller.call(1, BookkeepingMethods.renew, 1)
    assert len(log.tracebacks()) == 1
    caller.close()
