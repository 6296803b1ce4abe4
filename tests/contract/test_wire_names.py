"""Servers that are named, not numbered: who is asked for a name may be silent, or know several addresses."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.wire_support import LoopThread, slow_server
from tests.support import wait_until
from wire.blocking import BlockingClient
from wire.client import Client
from wire.config import Encoding
from wire.errors import QuorumfsError, Unavailable
from wire.methods import BookkeepingMethods

NAME = "server.invalid"
LONG_SECONDS = 20.0
"""Much longer than the deadline of a call; whoever waits for a silent name server so long has failed."""


class Names:
    """Stands for getaddrinfo(3): silent until `answers` is set, for names only."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.found: list[Any] = []
        self.asked = self.answered = 0
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._real(host, *args, **{**kwargs, "flags": socket.AI_NUMERICHOST})
        except socket.gaierror:
            pass
        if kwargs.get("flags", 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        assert host == NAME
        self.asked += 1
        self.answers.wait(LONG_SECONDS)
        self.answered += 1
        if not self.found:
            raise socket.gaierror(socket.EAI_NONAME, "nobody knows the name")
        return self.found


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tcp_only: None) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names)
    yield names
    names.answers.set()
    wait_until(lambda: names.asked == names.answered, 5, "the end of all look-ups")


def stream(host: str, port: int) -> Any:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


def test_a_name_that_is_not_found_in_time_ends_a_call(names: Names, rpc: Encoding) -> None:
    client = BlockingClient([f"{NAME}:1"], rpc)
    for _ in range(2):
        with pytest.raises(Unavailable, match=NAME):
            client.call_once(0.2, BookkeepingMethods.renew, 0)
        assert not names.answered
    client.close()


def test_many_calls_wait_for_one_look_up(loop: LoopThread, names: Names, rpc: Encoding) -> None:
    """Each call that is made meanwhile would else leave a thread behind that waits for the name server."""
    _, server, address = slow_server(loop)
    names.found = [stream("127.0.0.1", int(address.rpartition(":")[2]))]
    client = BlockingClient([f"{NAME}:1"], rpc, connect_seconds=LONG_SECONDS)
    with ThreadPoolExecutor(4) as threads:
        renew = (client.call_once, LONG_SECONDS, BookkeepingMethods.renew, 0)
        calls = [threads.submit(*renew) for _ in range(4)]
        wait_until(lambda: names.asked, 5, "the first look-up")
        with pytest.raises(QuorumfsError):
            client.call_once(0.2, BookkeepingMethods.renew, 0)
        names.answers.set()
        assert [call.result(LONG_SECONDS) for call in calls] == [0] * 4
    assert names.asked == 1
    client.close()
    loop.run(server.drain())


def test_an_unknown_name_is_told(names: Names, rpc: Encoding) -> None:
    names.answers.set()
    client = BlockingClient([f"{NAME}:1"], rpc)
    with pytest.raises(Unavailable, match="nobody knows the name"):
        client.call_once(5, BookkeepingMethods.renew, 0)
    client.close()


@pytest.fixture
def two_addresses(loop: LoopThread, names: Names) -> Iterator[None]:
    """The name has two addresses: a silent one, and that of a server."""
    _, server, address = slow_server(loop)
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())  # from now on nobody is let in there
        names.found = [stream(*full.getsockname()), stream("127.0.0.1", int(address.rpartition(":")[2]))]
        names.answers.set()
        yield
    loop.run(server.drain())


def test_another_address_of_a_name_gets_its_share_of_the_time(two_addresses: None, rpc: Encoding) -> None:
    client = BlockingClient([f"{NAME}:1"], rpc)
    assert client.call_once(1.0, BookkeepingMethods.renew, 0) == 0
    client.close()


async def call_once(seconds: float, **settings: Any) -> int:
    client = Client(f"{NAME}:1", **settings)
    try:
        return await client.call(seconds, BookkeepingMethods.renew, 0)
    finally:
        await client.close()


def test_it_does_so_on_an_event_loop_too(two_addresses: None) -> None:
    assert asyncio.run(call_once(4.0)) == 0


def test_an_event_loop_asks_a_silent_name_server_once_and_ends_without_its_answer(names: Names) -> None:
    """The loop's own few threads would all wait for that, and other names for them, and the process's end."""

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(Unavailable, match=NAME):
                await call_once(5.0, connect_seconds=0.1)

    asyncio.run(scenario())
    assert (names.asked, names.answered) == (1, 0)


def test_an_event_loop_is_told_of_an_unknown_name(names: Names) -> None:
    names.answers.set()
    with pytest.raises(Unavailable, match="nobody knows the name"):
        asyncio.run(call_once(5.0))
