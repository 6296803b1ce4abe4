"""Bytes in memory that the caller lends: they arrive as others do, and stay until nobody needs them."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.wire_support import (
    IDENTITY,
    AsyncCaller,
    LogLines,
    LoopThread,
    RunningServer,
    loop_thread,
)
from tests.support import wait_until
from wire import client_msgpack
from wire.address import TcpAddress, parse_address
from wire.digest import Buffer
from wire.errors import BadRequest, DeadlineExceeded
from wire.lending import LEAST_BYTES, LEND, SLOT_BYTES, Lender, make_lender
from wire.methods import DataMethods
from wire.msgpack_codec import Decoder, Encoder, Workbench
from wire.server import Server
from wire.shortcut import connect_beside

SECONDS = 10
SLOTS = 3


@pytest.fixture
def server(loop: LoopThread) -> Iterator[RunningServer]:
    running = RunningServer(loop, "127.0.0.1:0", DataMethods)
    running.implementations[DataMethods].answers.update(count=7, put=None, repair="good")
    yield running
    running.drain()


@pytest.fixture
def lender() -> Lender:
    return Lender(SLOTS)


@pytest.fixture
def caller(loop: LoopThread, server: RunningServer, lender: Lender) -> Iterator[AsyncCaller]:
    made = AsyncCaller(loop, server.address, "msgpack", lender=lender)
    assert made.call(SECONDS, DataMethods.count) == 7  # the offer went before it, and was answered before it
    yield made
    made.close()


def lent(lender: Lender, length: int = SLOT_BYTES) -> memoryview:
    """Return random bytes in lent memory."""
    taken = lender.take(length)
    assert taken is not None
    taken[:] = random.Random(length).randbytes(length)
    return taken


def free_slots(lender: Lender) -> int:
    taken = []
    while (view := lender.take(SLOT_BYTES)) is not None:
        taken.append(view)
    return len(taken)


def received(server: RunningServer) -> Any:
    return server.implementations[DataMethods].calls["put"][2]


@pytest.mark.parametrize("length", [LEAST_BYTES, SLOT_BYTES - 1, SLOT_BYTES])
def test_the_server_sees_the_very_bytes(
    server: RunningServer, caller: AsyncCaller, lender: Lender, length: int
) -> None:
    data = lent(lender, length)
    caller.call(SECONDS, DataMethods.put, b"b" * 16, b"d" * 32, data, True)
    got = received(server)
    assert type(got) is memoryview
    assert bytes(got) == bytes(data)
    data[5] ^= 1
    assert bytes(got) == bytes(data)
    assert server.implementations[DataMethods].calls["put"][::3] == (b"b" * 16, True)


def test_a_server_that_was_busy_when_it_was_offered_memory_takes_it_in_the_end(
    loop: LoopThread, server: RunningServer, lender: Lender
) -> None:
    goes_on = threading.Event()
    with loop_thread() as other:
        loop.loop.call_soon_threadsafe(goes_on.wait, SECONDS)
        caller = AsyncCaller(other, server.address, "msgpack", connect_seconds=0.05, lender=lender)
        with pytest.raises(DeadlineExceeded):
            caller.call(0.1, DataMethods.count)
        goes_on.set()
        assert caller.call(SECONDS, DataMethods.count) == 7
        caller.call(SECONDS, DataMethods.put, b"b", b"d", lent(lender), True)
        assert type(received(server)) is memoryview
        caller.close()


def test_other_bytes_go_through_the_socket(
    server: RunningServer, caller: AsyncCaller, lender: Lender
) -> None:
    whole = lent(lender)
    for data in (bytes(whole), whole[4096:], whole[:-1], memoryview(bytes(whole))):
        caller.call(SECONDS, DataMethods.put, b"b", b"d", data, True)
        got = received(server)
        assert type(got) is bytes
        assert got == data


def test_a_parameter_that_is_kept_is_no_view(
    server: RunningServer, caller: AsyncCaller, lender: Lender
) -> None:
    caller.call(SECONDS, DataMethods.put, lent(lender), b"d", b"data", True)
    block = server.implementations[DataMethods].calls["put"][0]
    assert type(block) is bytes
    assert len(block) == SLOT_BYTES


def test_memory_in_use_is_not_given_out_and_free_memory_is(caller: AsyncCaller, lender: Lender) -> None:
    assert lender.take(LEAST_BYTES - 1) is None
    assert lender.take(SLOT_BYTES + 1) is None
    views = [lent(lender) for _ in range(SLOTS)]
    assert lender.take(SLOT_BYTES) is None
    part = views.pop()[10:20]
    assert lender.take(SLOT_BYTES) is None
    part.release()
    gc.collect()
    assert free_slots(lender) == 1
    caller.call(SECONDS, DataMethods.put, b"b", b"d", views.pop(), True)
    wait_until(lambda: free_slots(lender) == SLOTS - len(views), 5, "the memory of an answered call is free")


def test_bytes_are_received_into_lent_memory_as_long_as_there_is_some(loop: LoopThread) -> None:
    lender = Lender(1)
    running = RunningServer(loop, "127.0.0.1:0", DataMethods, lender=lender)
    caller = AsyncCaller(loop, running.address, "msgpack")
    data = random.Random(1).randbytes(SLOT_BYTES)
    try:
        caller.call(SECONDS, DataMethods.put, b"b", b"d", data, True)
        first = received(running)
        assert type(first) is memoryview
        assert Lender.place_of(first) is not None
        caller.call(SECONDS, DataMethods.put, b"b", b"d", data, True)
        assert type(received(running)) is bytes
        assert first == received(running) == data
    finally:
        caller.close()
        running.drain()


class SlowStore:
    """Answers a put when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()

    async def put(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        await self.let.wait()

    def count(self) -> int:
        return 7


class SlowServer:
    """A server whose puts wait, a client that lends it memory, and one put that is late."""

    def __init__(self, loop: LoopThread, lender: Lender) -> None:
        self._loop = loop
        self.store = SlowStore()
        self.server = loop.run(self._make())
        self.caller = AsyncCaller(loop, loop.run(self.server.start("127.0.0.1:0")), "msgpack", lender=lender)
        assert self.caller.call(SECONDS, DataMethods.count) == 7

    async def _make(self) -> Server:
        server = Server(IDENTITY)
        server.register(DataMethods, self.store, only=["put", "count"])
        return server

    def put_late(self, lender: Lender) -> None:
        with pytest.raises(DeadlineExceeded):
            self.caller.call(0.1, DataMethods.put, b"b", b"d", lent(lender), True)

    def close(self) -> None:
        self._loop.loop.call_soon_threadsafe(self.store.let.set)
        self.caller.close()
        self._loop.run(self.server.drain())


@pytest.fixture
def slow(loop: LoopThread, lender: Lender) -> Iterator[SlowServer]:
    made = SlowServer(loop, lender)
    yield made
    made.close()


def test_lent_bytes_of_a_late_call_stay_until_its_answer(
    loop: LoopThread, slow: SlowServer, lender: Lender
) -> None:
    slow.put_late(lender)
    gc.collect()
    assert free_slots(lender) == SLOTS - 1
    loop.loop.call_soon_threadsafe(slow.store.let.set)
    wait_until(lambda: free_slots(lender) == SLOTS, 5, "the memory of a call that was answered late is free")


def test_lent_bytes_of_a_broken_connection_stay_for_a_while(
    loop: LoopThread, slow: SlowServer, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_timer, ends_of_while = loop.loop.call_later, []

    def call_later(seconds: float, end: Callable[[], object], **context: Any) -> asyncio.TimerHandle:
        if seconds == client_msgpack.LENT_SECONDS:
            ends_of_while.append(end)
        return begin_timer(seconds, end, **context)

    monkeypatch.setattr(loop.loop, "call_later", call_later)
    slow.put_late(lender)
    slow.caller.close()
    wait_until(lambda: bool(ends_of_while), 5, "the connection is broken")
    gc.collect()
    assert free_slots(lender) == SLOTS - 1
    loop.loop.call_soon_threadsafe(ends_of_while.pop())
    wait_until(lambda: free_slots(lender) == SLOTS, 5, "the memory of a broken connection is free")


def offer_by_hand(server: RunningServer, params: list[Any], rest: bytes = b"") -> list[list[Any]]:
    """Send an offer over a Unix socket, and other messages with it; return the answers until it is quiet."""
    with connected_beside(server) as raw:
        raw.sendall(b"".join(map(bytes, Encoder().request(1, LEND, params))) + rest)
        decoder, answers = Decoder(Workbench(2**20)), []
        while len(answers) < 1 + rest.count(b"count") and (data := raw.recv(65536)):
            decoder.room()[: len(data)] = data
            decoder.received(len(data))
            while (message := decoder.next()) is not None:
                answers.append(message)
    return answers


@contextmanager
def connected_beside(server: RunningServer) -> Iterator[socket.socket]:
    address = parse_address(server.address)
    assert isinstance(address, TcpAddress)
    raw = connect_beside(address)
    assert raw is not None
    with raw:
        raw.settimeout(SECONDS)
        yield raw


@pytest.mark.parametrize("change", ["descriptor", "device", "inode", "size", "fewer", "text", "unsealed"])
def test_what_is_not_as_it_is_offered_is_not_taken(server: RunningServer, change: str) -> None:
    lender = Lender(1)
    params: list[Any] = list(lender.offer)
    if change == "fewer":
        params.pop()
    elif change == "text":
        params[0] = "../../../etc/passwd"
    elif change == "unsealed":
        handle = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        size = lender.offer[-1]
        os.ftruncate(handle, size)
        found = os.fstat(handle)
        params = [handle, found.st_dev, found.st_ino, size]
    else:
        params[["descriptor", "device", "inode", "size"].index(change)] += 4096
    (answer,) = offer_by_hand(server, params)
    assert answer[2][0] == BadRequest.fault_code
    assert answer[3] is None


def test_calls_right_behind_an_offer_are_answered(server: RunningServer) -> None:
    lender = Lender(1)
    calls = b"".join(bytes(b"".join(Encoder().request(number, "count", []))) for number in (2, 3))
    assert [answer[1:] for answer in offer_by_hand(server, lender.offer, calls)] == [
        [1, None, True],
        [2, None, 7],
        [3, None, 7],
    ]


@pytest.mark.parametrize("place", [(0, SLOT_BYTES + 1), (8, 1), (SLOT_BYTES, 1), (2**32 - 1, 2**32 - 1)])
def test_a_place_outside_of_the_memory_ends_the_connection(
    server: RunningServer, place: tuple[int, int]
) -> None:
    lender = Lender(1)
    put = b"\x94\x00\x02\xa3put\x94\xc4\x01b\xc4\x01d\xd8\x01" + struct.pack(">IIQ", *place, 1) + b"\xc3"
    with connected_beside(server) as raw:
        raw.sendall(b"".join(map(bytes, Encoder().request(1, LEND, lender.offer))))
        assert raw.recv(100)
        raw.sendall(put)
        assert raw.recv(100) == b""


def test_no_memory_is_taken_over_tcp(server: RunningServer) -> None:
    with server.connect() as raw:
        raw.sendall(b"".join(map(bytes, Encoder().request(1, LEND, Lender(1).offer))))
        assert b"same machine" in raw.recv(1000)


OFFER_AS_NOBODY = """
import os, socket, sys
from wire.lending import LEND, Lender
from wire.msgpack_codec import Encoder
os.setuid(65534)
raw = socket.socket(socket.AF_UNIX)
raw.connect(b"\\0quorumfs/" + sys.argv[1].encode())
raw.sendall(b"".join(map(bytes, Encoder().request(1, LEND, Lender(1).offer))))
print(b"same user" in raw.recv(1000))
"""


def test_no_memory_is_taken_of_another_user(server: RunningServer) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    command = [sys.executable, "-c", OFFER_AS_NOBODY, server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_without_memory_to_lend_there_is_a_warning(monkeypatch: pytest.MonkeyPatch, log: LogLines) -> None:
    def forbid(*_: Any) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbid)
    assert make_lender() is None
    assert log.count("not permitted") == 1
