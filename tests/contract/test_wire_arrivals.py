"""What arrives by many connections at once takes a bounded part of a server's memory, and calls go on."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.contract.wire_support import OnceCaller
from tests.support import ROOT, wait_until
from wire.config import Encoding
from wire.digest import BLOCK_BYTES
from wire.methods import DataMethods

MIB = 1024 * 1024
PROMISED_MIB = 200
LONG_BYTES = 4 * MIB
PROGRAM = """
import asyncio
import uvloop
from tests.contract.wire_support import IDENTITY
from wire.digest import Buffer
from wire.memory import keep_freed_memory
from wire.methods import DataMethods
from wire.server import Server

class StandingStill:
    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def put(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        await self.may_end.wait()

    def sync(self, blocks: list[bytes]) -> list[bytes]:
        self.may_end.set()
        return blocks

    def count(self) -> int:
        return 7

async def serve():
    server = Server(IDENTITY)
    server.register(DataMethods, StandingStill(), only=["put", "sync", "count"])
    print(await server.start("127.0.0.1:0"), flush=True)
    await asyncio.Event().wait()

keep_freed_memory()
uvloop.run(serve())
"""


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None
        try:
            yield made, made.stdout.readline().strip()
        finally:
            made.kill()


def most_mib(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


def half_a_put(rpc: Encoding) -> bytes:
    """Return all but the end of a call with a long byte string."""
    if rpc == "xml":
        head = (
            f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {LONG_BYTES + 100}"
        )
        return head.encode() + b"\r\n\r\n" + b" " * LONG_BYTES
    return bytes(msgpack.packb([0, 1, "put", [b"k" * 16, b"d" * 32, b"x" * LONG_BYTES, True]]))[:-1000]


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=0.2)


def test_half_requests_of_many_connections_are_bounded(
    rpc: Encoding, process: tuple[subprocess.Popen[str], str]
) -> None:
    """Thirty bodies of 4 MB of which the last bytes did not come took 260 MB."""
    made, address = process
    data = half_a_put(rpc)
    peers = [connect(address) for _ in range(80)]
    for peer in peers:
        try:
            peer.sendall(data)
        except OSError:
            pass  # it is not read, or was closed for one of the others
    client = OnceCaller(address, rpc)
    assert client.call(20, DataMethods.count) == 7
    client.call(20, DataMethods.sync, [])
    client.call(20, DataMethods.put, b"k" * 16, b"d" * 32, bytes(BLOCK_BYTES), True)
    assert most_mib(made) < PROMISED_MIB
    client.close()
    for peer in peers:
        peer.close()


def test_calls_that_stand_still_hold_a_bounded_number_of_blocks(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    """Each connection might have 256 calls in flight, of a block each. All are carried out in the end."""
    made, address = process
    puts = [
        msgpack.packb([0, n, "put", [b"k" * 16, b"d" * 32, bytes(BLOCK_BYTES), True]]) for n in range(100)
    ]
    peers = [connect(address) for _ in range(4)]
    senders = [threading.Thread(target=peer.sendall, args=(b"".join(puts),)) for peer in peers]
    for peer, sender in zip(peers, senders, strict=True):
        peer.settimeout(60)
        sender.start()
    client = OnceCaller(address, "msgpack")
    wait_until(lambda: most_mib(made) > 60, 20, "blocks are held")
    assert client.call(20, DataMethods.count) == 7
    client.call(20, DataMethods.sync, [])
    for peer, sender in zip(peers, senders, strict=True):
        unpacker = msgpack.Unpacker()
        answered: set[int] = set()
        while len(answered) < len(puts):
            unpacker.feed(peer.recv(65536))
            answered.update(message[1] for message in unpacker)
        sender.join()
        peer.close()
    assert most_mib(made) < PROMISED_MIB
    client.close()
