"""A peer that sends no more, but reads still (shutdown(SHUT_WR), as `nc -N` does): it gets its answers."""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgpack
import pytest

from tests.contract.wire_support import LogLines, LoopThread, slow_server
from tests.support import wait_until
from wire.server import Server

MILLISECONDS = 50
LONG_MILLISECONDS = 60_000


def as_xml(number: int) -> bytes:
    body = (
        "<?xml version='1.0'?><methodCall><methodName>renew</methodName>"
        f"<params><param><value><i8>{number}</i8></value></param></params></methodCall>"
    ).encode()
    head = f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def as_msgpack(number: int) -> bytes:
    return bytes(msgpack.packb([0, 1, "renew", [number]]))


SAID: dict[str, Callable[[int], bytes]] = {"msgpack": as_msgpack, "xml": as_xml}


def connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(10)
        raw.connect(address.removeprefix("unix:"))
        return raw
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def until_closed(raw: socket.socket) -> bytes:
    received = b""
    with raw:
        while chunk := raw.recv(65536):
            received += chunk
    return received


def is_rid_of_all(server: Server) -> Callable[[], bool]:
    return lambda: len(server.connections) == 0


@pytest.mark.parametrize("number", [0, MILLISECONDS])
@pytest.mark.parametrize("encoding", SAID)
def test_it_gets_its_answer_and_the_end(encoding: str, number: int, loop: LoopThread, address: str) -> None:
    _, server, real = slow_server(loop, address)
    raw = connect(real)
    raw.sendall(SAID[encoding](number))
    raw.shutdown(socket.SHUT_WR)
    answer = until_closed(raw)
    assert (b"<int>%d</int>" % number if encoding == "xml" else msgpack.packb([1, 1, None, number])) in answer
    wait_until(is_rid_of_all(server), 5, "the end of the connection")
    loop.run(server.drain())


@pytest.mark.parametrize("encoding", SAID)
def test_it_ends_after_the_call_was_begun(encoding: str, loop: LoopThread) -> None:
    slow, server, real = slow_server(loop)
    raw = connect(real)
    raw.sendall(SAID[encoding](4 * MILLISECONDS))
    wait_until(lambda: slow.begun, 5, "the call")
    raw.shutdown(socket.SHUT_WR)
    assert b"200" in until_closed(raw) or encoding == "msgpack"
    loop.run(server.drain())


@pytest.mark.parametrize("encoding", SAID)
def test_after_its_answer_it_is_closed_at_once(encoding: str, loop: LoopThread) -> None:
    _, server, real = slow_server(loop)
    raw = connect(real)
    raw.sendall(SAID[encoding](0))
    assert raw.recv(65536)
    raw.shutdown(socket.SHUT_WR)
    assert until_closed(raw) == b""
    loop.run(server.drain())


@pytest.mark.parametrize("encoding", SAID)
def test_half_a_request_before_its_end_is_no_call(encoding: str, loop: LoopThread, log: LogLines) -> None:
    slow, server, real = slow_server(loop, request_seconds=0.2)
    raw = connect(real)
    raw.sendall(SAID[encoding](LONG_MILLISECONDS)[:-1])
    raw.shutdown(socket.SHUT_WR)
    try:
        assert until_closed(raw) == b""
    except ConnectionResetError:
        pass
    assert not slow.begun
    wait_until(is_rid_of_all(server), 5, "the end of the connection")
    loop.run(server.drain())
