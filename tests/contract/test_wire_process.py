"""A real server process: its ready line, its end by a signal, and how it refuses an address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgpack
import pytest

from tests.support import ROOT
from wire.blocking import BlockingClient
from wire.errors import QuorumfsError
from wire.messages import Identity
from wire.methods import BookkeepingMethods, CommonMethods

SCRIPT = """
import asyncio, sys
from wire.config import ConfigError
from wire.messages import Identity
from wire.methods import BookkeepingMethods, CommonMethods
from wire.process import run, serve
from wire.server import Server

class Service:
    def identity(self):
        return Identity("metaserver", "c", 0, 1)
    def status(self):
        return {}
    async def renew(self, session):
        await asyncio.sleep(session / 1000)
        return session

async def main():
    if sys.argv[1] == "refuse":
        raise ConfigError("this cannot work: do that")
    server = Server(Identity("metaserver", "c", 0, 1))
    server.register(CommonMethods, Service())
    server.register(BookkeepingMethods, Service(), only=["renew"])
    await serve(server, sys.argv[1])
    print("clean end", file=sys.stderr)

sys.exit(run(main))
"""


def spawn(address: str, limits: str = "") -> subprocess.Popen[str]:
    """Start a server; `limits` are the files it may have open, and can have by asking: "SOFT:HARD"."""
    limited = ["prlimit", f"--nofile={limits}"] if limits else []
    return subprocess.Popen(
        [*limited, sys.executable, "-c", SCRIPT, address],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def running(address: str, limits: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = spawn(address, limits)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        assert ready[:3] == ["ready", "metaserver", "0"], process.communicate()
        yield process, ready[3]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix:{}/socket"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_calls_in_flight(number: signal.Signals, address: str) -> None:
    with running(address) as (process, real):
        client = BlockingClient([real])
        assert client.call(5, CommonMethods.identity) == Identity("metaserver", "c", 0, 1)
        results: list[int | QuorumfsError] = []

        def slow() -> None:
            try:
                results.append(client.call_once(5, BookkeepingMethods.renew, 500))
            except QuorumfsError as error:
                results.append(error)

        thread = threading.Thread(target=slow)
        thread.start()
        time.sleep(0.2)  # no event tells that the call has arrived
        process.send_signal(number)
        output, log = process.communicate(timeout=10)
        thread.join(5)
        assert results == [500]
        assert process.returncode == 0
        assert output == ""
        assert log.endswith("clean end\n")
        assert "Traceback" not in log
        client.close()


def test_a_call_survives_kill_and_restart(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    results: list[int] = []
    with running(address) as (process, real):
        client = BlockingClient([real])
        thread = threading.Thread(
            target=lambda: results.append(client.call(10, BookkeepingMethods.renew, 700))
        )
        thread.start()
        time.sleep(0.2)
        process.kill()
        process.wait()
    with running(address):  # the socket that the killed one left behind is replaced
        thread.join(10)
    assert results == [700]
    client.close()


def test_an_address_in_use_is_refused_in_one_line(address: str) -> None:
    with running(address) as (first, real):
        second = spawn(real)
        output, log = second.communicate(timeout=10)
        assert second.returncode == 2
        assert output == ""
        assert log.count("\n") == 1 and f"{real} is in use" in log
        client = BlockingClient([real])
        assert client.call(5, CommonMethods.status) == {}
        client.close()
        assert first.poll() is None


@pytest.mark.parametrize(
    "wrong", ["refuse", "192.0.2.1:0", "no.such.host.invalid:0", "unix:/no/such/directory/s"]
)
def test_settings_that_cannot_work_end_it_with_status_2(wrong: str) -> None:
    process = spawn(wrong)
    output, log = process.communicate(timeout=20)
    assert (process.returncode, output, log.count("\n")) == (2, "", 1), log


def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    process = spawn(f"unix:{file}")
    _, log = process.communicate(timeout=10)
    assert process.returncode == 2 and log.count("\n") == 1
    assert file.read_text() == "precious"


def answered_connections(real: str, count: int) -> int:
    """Return how many of so many connections, all open at once, are answered a call."""
    with ExitStack() as stack:
        host, _, port = real.rpartition(":")
        made = [stack.enter_context(socket.create_connection((host, int(port)), 5)) for _ in range(count)]
        answered = 0
        for connection in made:
            with suppress(ConnectionError):
                connection.sendall(msgpack.packb([0, 1, "status", []]))
                answered += bool(connection.recv(1000))
        return answered


def test_a_server_has_as_many_connections_as_the_system_lets_it() -> None:
    with running("127.0.0.1:0", limits="64:400") as (_, real):
        assert answered_connections(real, 150) == 150


def test_connections_leave_a_server_files_to_open() -> None:
    with running("127.0.0.1:0", limits="100:100") as (process, real):
        assert answered_connections(real, 120) == 50
        process.terminate()
        _, log = process.communicate(timeout=10)
        assert log.count("more than 50 connections") == 70


def test_nagle_is_off_at_both_ends() -> None:
    with running("127.0.0.1:0") as (_, real):
        client = BlockingClient([real])
        begin = time.monotonic()
        for _ in range(50):
            client.call(5, CommonMethods.status)
        assert time.monotonic() - begin < 1  # delayed acknowledgements would cost 40 ms a call
        client.close()
