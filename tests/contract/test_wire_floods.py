"""Many peers that send as much as they can: a server's memory stays bounded, and all are answered."""

from __future__ import annotations

import asyncio
import subprocess
import threading

import msgpack
import pytest

from tests.contract.test_wire_arrivals import MIB, PROMISED_MIB, connect, most_mib, process
from tests.contract.wire_support import IDENTITY, LoopThread, OnceCaller
from tests.support import wait_until
from wire.arrivals import MOST_HELD_BYTES
from wire.config import Encoding
from wire.digest import BLOCK_BYTES
from wire.methods import DataMethods
from wire.server import Server
from wire.xml_codec import pack_request

__all__ = ["process"]

PUT = [b"k" * 16, b"d" * 32, b"x" * BLOCK_BYTES, True]


def request(rpc: Encoding, name: str, params: list[object]) -> bytes:
    if rpc == "msgpack":
        return bytes(msgpack.packb([0, 1, name, params]))
    body = pack_request(name, params)
    head = f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def flood(made: subprocess.Popen[str], address: str, rpc: Encoding, data: bytes, peers: int) -> list[str]:
    """Have so many peers send a request each, at once; return what they got that was no answer.

    They are carried out when the server holds as much as it does.
    """
    wrong: list[str] = []

    def send() -> None:
        try:
            with connect(address) as peer:
                peer.settimeout(60)
                peer.sendall(data)
                got = peer.recv(65536)
        except OSError as error:
            wrong.append(repr(error))
            return
        begin = b"HTTP/1.1 200" if rpc == "xml" else b"\x94\x01"
        if not got.startswith(begin):
            wrong.append(repr(got[:100]))

    senders = [threading.Thread(target=send) for _ in range(peers)]
    for sender in senders:
        sender.start()
    client = OnceCaller(address, rpc)
    wait_until(lambda: most_mib(made) > 45, 20, "requests are held")
    assert client.call(20, DataMethods.count) == 7
    client.call(20, DataMethods.sync, [])
    for sender in senders:
        sender.join()
    client.close()
    return wrong


def test_puts_of_many_peers_at_once(rpc: Encoding, process: tuple[subprocess.Popen[str], str]) -> None:
    """Of two hundred 330 MiB were held, by XML-RPC, and more as they went on."""
    made, address = process
    assert flood(made, address, rpc, request(rpc, "put", PUT), 200) == []
    assert most_mib(made) < PROMISED_MIB


def test_calls_of_many_puts_of_many_peers_at_once(
    rpc: Encoding, process: tuple[subprocess.Popen[str], str]
) -> None:
    """They were not counted once they had come; and some were never read again, as they waited in a ring."""
    made, address = process
    count = 12 if rpc == "msgpack" else 9
    calls = [{"methodName": "put", "params": PUT}] * count
    assert flood(made, address, rpc, request(rpc, "system.multicall", [calls]), 60) == []
    assert most_mib(made) < PROMISED_MIB


def test_a_thousand_connections(rpc: Encoding, process: tuple[subprocess.Popen[str], str]) -> None:
    """Each had a room and an unpacker of its own, which took 120 MiB."""
    made, address = process
    data = request(rpc, "count", [])
    peers = [connect(address) for _ in range(1000)]
    for peer in peers:
        peer.sendall(data)
    for peer in peers:
        assert peer.recv(65536)
    assert most_mib(made) < 100
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("size", [200, 40_000])
def test_short_calls_in_flight(size: int, process: tuple[subprocess.Popen[str], str]) -> None:
    """Up to 256 of each connection were in flight, whatever others had: 54,703 took 250 MiB and more."""
    made, address = process
    puts = b"".join(
        msgpack.packb([0, number, "put", [b"k" * 16, b"d" * 32, b"x" * size, True]]) for number in range(250)
    )
    peers = [connect(address) for _ in range(200)]
    senders = [threading.Thread(target=peer.sendall, args=(puts,)) for peer in peers]
    for sender in senders:
        sender.start()
    client = OnceCaller(address, "msgpack")
    assert client.call(20, DataMethods.count) == 7
    client.call(20, DataMethods.sync, [])
    for peer, sender in zip(peers, senders, strict=True):
        peer.settimeout(60)
        unpacker = msgpack.Unpacker()
        answered = 0
        while answered < 250:
            data = peer.recv(MIB)
            assert data
            unpacker.feed(data)
            answered += sum(1 for _ in unpacker)
        sender.join()
        peer.close()
    assert most_mib(made) < PROMISED_MIB
    client.close()


class Slow:
    """Answers a turn of the loop later."""

    async def count(self) -> int:
        await asyncio.sleep(0)
        return 7


def test_one_call_of_each_connection_goes_on_whatever_others_hold(loop: LoopThread) -> None:
    """One that had come beside another of its connection was not read when that was answered."""

    async def serve() -> Server:
        server = Server(IDENTITY)
        server.register(DataMethods, Slow(), only=["count"])
        await server.start("127.0.0.1:0")
        server.connections.arrivals.hold(MOST_HELD_BYTES)
        return server

    server = loop.run(serve())
    with connect(server.address) as peer:
        peer.sendall(b"".join(msgpack.packb([0, number, "count", []]) for number in range(20)))
        peer.settimeout(10)
        unpacker = msgpack.Unpacker()
        answered: list[int] = []
        while len(answered) < 20:
            data = peer.recv(MIB)
            assert data
            unpacker.feed(data)
            answered += [message[1] for message in unpacker]
    assert answered == list(range(20))
    loop.run(server.drain())
