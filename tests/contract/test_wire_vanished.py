"""A machine that is gone without a word: who called it makes a new connection, who was called forgets it.

Packets are dropped by a filter on one end of a connection, as a firewall would that forgot it.
"""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.wire_support import LoopThread, RunningServer, slow_server
from tests.support import wait_until
from wire import blocking_links, tcp
from wire.blocking import BlockingClient
from wire.config import Encoding
from wire.methods import BookkeepingMethods, CommonMethods
from wire.msgpack_codec import Encoder

SO_ATTACH_FILTER = 26
LONG_SECONDS = 60.0
"""The deadline of a call: much longer than it takes to notice."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def drop_all(connected: Any) -> None:
    """Have the kernel drop, unconfirmed, what arrives at a socket from now on."""
    nothing = (_Instruction * 1)(_Instruction(0x06, 0, 0, 0))  # return 0 bytes of each packet
    program = _Program(1, nothing)
    connected.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))


@pytest.fixture(autouse=True)
def soon(tcp_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice in seconds what takes longer elsewhere."""
    for name, seconds in {
        "UNCONFIRMED_SECONDS": 2,
        "QUIET_SECONDS": 1,
        "PEER_QUIET_SECONDS": 1,
        "PEER_PROBE_SECONDS": 1,
    }.items():
        monkeypatch.setattr(tcp, name, seconds)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Descriptors of our own of the sockets that the blocking client has made, in order."""
    made: list[socket.socket] = []
    connect = blocking_links.connect

    def noted(*arguments: Any) -> socket.socket:
        connected = connect(*arguments)
        made.append(connected.dup())
        return connected

    monkeypatch.setattr(blocking_links, "connect", noted)
    yield made
    for each in made:
        each.close()


def test_a_call_leaves_a_connection_that_leads_nowhere(
    loop: LoopThread, rpc: Encoding, sockets: list[socket.socket]
) -> None:
    """Each idle connection that a firewall had forgotten cost a call its whole deadline, and failed it."""
    server = RunningServer(loop, "127.0.0.1:0", CommonMethods)
    server.implementations[CommonMethods].answers["identity"] = server.server.identity
    client = BlockingClient([server.address], rpc)
    client.call(LONG_SECONDS, CommonMethods.identity)
    drop_all(sockets[0])
    assert client.call(LONG_SECONDS, CommonMethods.identity) == server.server.identity
    assert len(sockets) == 2
    client.close()
    server.drain()


def test_a_call_does_not_wait_for_an_answer_of_a_machine_that_is_gone(
    loop: LoopThread, rpc: Encoding, sockets: list[socket.socket]
) -> None:
    slow, server, real = slow_server(loop)
    client = BlockingClient([real], rpc)
    answers: list[int] = []

    def call() -> None:
        answers.append(client.call(LONG_SECONDS, BookkeepingMethods.renew, 500))

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: slow.begun, 5, "the call has begun")
    drop_all(sockets[0])
    thread.join(LONG_SECONDS / 2)
    assert answers == [500]
    client.close()
    loop.run(server.drain())


def test_a_server_closes_the_connection_of_a_machine_that_is_gone(loop: LoopThread) -> None:
    """They stood for ever: a laptop that left its network each day took one more each time."""
    server = RunningServer(loop, "127.0.0.1:0", CommonMethods)
    with server.connect() as gone:
        gone.sendall(b"".join(Encoder().request(1, "status", [])))
        assert gone.recv(1)
        drop_all(gone)
        wait_until(lambda: not len(server.server.connections), LONG_SECONDS, "the connection is closed")
    server.drain()
