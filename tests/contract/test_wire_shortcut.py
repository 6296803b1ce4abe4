"""The Unix socket beside a loopback TCP address: who takes it, and what falls back to TCP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.contract.wire_support import LogLines, LoopThread, RunningServer, make_caller
from wire.address import TcpAddress, parse_address
from wire.methods import BookkeepingMethods
from wire.shortcut import connect_beside, listen_beside

NOBODY = 65534
HOLD_NAME = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
held = socket.socket(socket.AF_UNIX)
held.bind(b"\\0quorumfs/" + sys.argv[2].encode())
held.listen()
print("held", flush=True)
sys.stdin.read()
"""


def tcp(text: str) -> TcpAddress:
    address = parse_address(text)
    assert isinstance(address, TcpAddress)
    return address


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def name_held_by(user: int, address: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process take the name beside an address."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_NAME, str(user), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_server_is_reached_beside_its_address_until_it_drains(loop: LoopThread) -> None:
    server = RunningServer(loop, "127.0.0.1:0", BookkeepingMethods)
    connected = connect_beside(tcp(server.address))
    assert connected is not None
    assert connected.family == socket.AF_UNIX
    connected.close()
    server.drain()
    assert connect_beside(tcp(server.address)) is None


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_clients_call_over_tcp_where_the_name_is_taken(loop: LoopThread, log: LogLines, kind: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    address = free_address()
    with name_held_by(NOBODY, address):
        server = RunningServer(loop, address, BookkeepingMethods)
        server.implementations[BookkeepingMethods].answers["renew"] = 7
        caller = make_caller(kind, loop, address, "msgpack")
        assert caller.call(5, BookkeepingMethods.renew, 1) == 7
        caller.close()
        server.drain()
    assert log.count("served over TCP only") == 1
    assert log.count(f"belongs to user {NOBODY}") == 1


def test_nothing_is_left_of_a_killed_server() -> None:
    address = free_address()
    with name_held_by(os.geteuid(), address) as holder:
        assert listen_beside(tcp(address)) is None
        holder.kill()
        holder.wait(10)
        listening = listen_beside(tcp(address))
        assert listening is not None
        listening.close()


@pytest.mark.parametrize("text", ["192.0.2.1:7000", "0.0.0.0:7000", "localhost:7000", "127.0.0.1:0"])
def test_only_loopback_addresses_in_figures_have_one(text: str) -> None:
    assert listen_beside(tcp(text)) is None
    assert connect_beside(tcp(text)) is None
