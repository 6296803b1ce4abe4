"""What arrives by many connections at once takes a bounded part of a server's memory, and calls go on."""

from __future__ import annotations

import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.contract.wire_support import LogLines, LoopThread, OnceCaller, RunningServer
from tests.support import ROOT, wait_until
from wire import unread
from wire.config import Encoding
from wire.digest import BLOCK_BYTES
from wire.messages import BlockPart
from wire.methods import DataMethods
from wire.xml_codec import pack_request

MIB = 1024 * 1024
PROMISED_MIB = 200
LONG_BYTES = 4 * MIB
PROGRAM = """
import asyncio
import uvloop
from tests.contract.wire_support import IDENTITY
from wire.digest import BLOCK_BYTES, Buffer
from wire.memory import keep_freed_memory
from wire.messages import BlockPart
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

    async def get(
        self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None
    ) -> BlockPart:
        await asyncio.sleep(0)
        return BlockPart(BLOCK_BYTES, b"", b"x" * BLOCK_BYTES)

    def count(self) -> int:
        return 7

async def serve():
    server = Server(IDENTITY)
    server.register(DataMethods, StandingStill(), only=["put", "get", "sync", "count"])
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
    return socket.create_connection((host, int(port)), timeout=20)


def test_half_requests_of_many_connections_are_bounded(
    rpc: Encoding, process: tuple[subprocess.Popen[str], str]
) -> None:
    """Thirty bodies of 4 MB of which the last bytes did not come took 260 MB."""
    made, address = process
    data = half_a_put(rpc)
    peers = [connect(address) for _ in range(80)]
    for peer in peers:
        peer.settimeout(0.2)
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


def test_requests_behind_one_that_stands_still_are_not_read(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    """Which is aiohttp's doing, since 3.14.1: before, 300 MB of them took 550 MiB."""
    made, address = process
    body = pack_request("put", [b"k" * 16, b"d" * 32, b"x" * 2000, True])
    head = f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}"
    data = (head.encode() + b"\r\n\r\n" + body) * 100
    peer = connect(address)
    peer.settimeout(2)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 300 * MIB:
            sent += peer.send(data)
    assert most_mib(made) < PROMISED_MIB
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
    wait_until(lambda: most_mib(made) > 45, 20, "blocks are held")
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


def unread_calls(rpc: Encoding) -> bytes:
    """Return a call of many others, which all answer a block: more than it may have results."""
    calls = [{"methodName": "get", "params": [b"k" * 16, 0, 0]} for _ in range(15)]
    if rpc == "xml":
        body = pack_request("system.multicall", [calls])
        head = f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body
    return bytes(msgpack.packb([0, 1, "system.multicall", [calls]]))


def test_answers_that_nobody_reads_are_bounded(
    rpc: Encoding, process: tuple[subprocess.Popen[str], str]
) -> None:
    """Each connection might leave one unread, of 8 MiB, and they are made at once: 200 took 570 MiB."""
    made, address = process
    client = OnceCaller(address, rpc)
    peers = [connect(address) for _ in range(200)]
    calls = unread_calls(rpc)
    for peer in peers:
        peer.sendall(calls)
    assert client.call(20, DataMethods.count) == 7
    assert len(client.call(20, DataMethods.get, b"k" * 16, 0, 0).data) == BLOCK_BYTES
    assert most_mib(made) < PROMISED_MIB
    client.close()
    for peer in peers:
        peer.close()


def many_gets(rpc: Encoding) -> bytes:
    """Return as many calls as a peer may send before it reads an answer."""
    if rpc == "msgpack":
        return b"".join(msgpack.packb([0, number, "get", [b"k" * 16, 0, 0]]) for number in range(32))
    body = pack_request("get", [b"k" * 16, 0, 0])
    head = f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in turn"])
def test_blocks_that_nobody_reads_are_bounded(
    rpc: Encoding, process: tuple[subprocess.Popen[str], str], at_once: bool
) -> None:
    """Of a peer that did not read only the first answer was counted: 32 each took 910 MiB."""
    made, address = process
    client = OnceCaller(address, rpc)
    peers = []
    for _ in range(30):
        peers.append(connect(address))
        peers[-1].sendall(many_gets(rpc))
        if not at_once:
            assert select.select([peers[-1]], [], [], 20)[0]
    assert client.call(20, DataMethods.count) == 7
    assert len(client.call(20, DataMethods.get, b"k" * 16, 0, 0).data) == BLOCK_BYTES
    assert most_mib(made) < PROMISED_MIB
    client.close()
    for peer in peers:
        peer.close()


def answer_bytes(rpc: Encoding, peer: socket.socket) -> int:
    """Read an answer; return how long it is."""
    end = b"</methodResponse>\n"
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    length, last = 0, b""
    while chunk := peer.recv(MIB):
        length += len(chunk)
        last = (last + chunk)[-len(end) :]
        if rpc == "msgpack":
            unpacker.feed(chunk)
            if next(unpacker, None) is not None:
                return length
        elif last == end:
            return length
    raise AssertionError(f"the connection was closed after {length} bytes")


def test_answers_that_were_read_are_not_kept(
    rpc: Encoding, process: tuple[subprocess.Popen[str], str]
) -> None:
    """Each open connection kept the longest answer, or the last one: thirty took 530 MiB, 680 by XML-RPC."""
    made, address = process
    peers = [connect(address) for _ in range(30)]
    for peer in peers:
        peer.sendall(unread_calls(rpc))
        assert answer_bytes(rpc, peer) > 8 * BLOCK_BYTES
    assert most_mib(made) < PROMISED_MIB
    for peer in peers:
        peer.close()


def test_a_peer_that_takes_nothing_of_its_answers_for_long_is_left(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, log: LogLines, rpc: Encoding
) -> None:
    """It kept its connection for ever: a thousand of them, and nobody else could connect."""
    monkeypatch.setattr(unread, "UNREAD_SECONDS", 0.3)
    server = RunningServer(loop, "127.0.0.1:0", DataMethods, request_seconds=0.4)
    server.implementations[DataMethods].answers["get"] = BlockPart(BLOCK_BYTES, b"", b"x" * BLOCK_BYTES)
    idle, deaf = server.connect(), server.connect()
    idle.sendall(msgpack.packb([0, 1, "digest", [b"k" * 16, 0, 0]]))
    deaf.sendall(unread_calls(rpc))
    wait_until(lambda: log.count("took nothing of its answers") == 1, 20, "it is closed")
    assert idle.recv(100)
    wait_until(lambda: len(server.server.connections) == 1, 20, "it is forgotten, and the other is not")
    for raw in (idle, deaf):
        raw.close()
    server.drain()
