"""Long answers are made as far as there is room for them: the rest waits, and is made or given up."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.contract.wire_support import IDENTITY, AsyncCaller, LoopThread
from tests.support import wait_until
from wire.config import Encoding
from wire.digest import BLOCK_BYTES, Buffer
from wire.errors import Draining
from wire.making import MOST_MADE_BYTES, MOST_OF_ONE_BYTES
from wire.messages import BlockPart, Identity
from wire.methods import CommonMethods, DataMethods
from wire.server import Server
from wire.xml_codec import pack_request


class ManyParts:
    """Answers with a block of zeros a call, and counts the calls that it was given before any answer."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_answer = asyncio.Event()

    async def get(
        self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None
    ) -> BlockPart:
        self.begun += 1
        await self.may_answer.wait()
        return BlockPart(BLOCK_BYTES, b"", bytes(BLOCK_BYTES))

    def identity(self) -> Identity:
        return IDENTITY

    def status(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def many_parts(loop: LoopThread) -> Iterator[tuple[ManyParts, Server]]:
    async def serve() -> tuple[ManyParts, Server]:
        parts, server = ManyParts(), Server(IDENTITY)
        server.register(DataMethods, parts, only=["get"])
        server.register(CommonMethods, parts)
        await server.start("127.0.0.1:0")
        return parts, server

    parts, server = loop.run(serve())
    yield parts, server
    loop.run(server.drain())


def gets(count: int) -> bytes:
    return b"".join(msgpack.packb([0, number, "get", [b"x" * 16, 0, 0]]) for number in range(count))


def connect(server: Server) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def until_answered(raw: socket.socket, count: int) -> None:
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    answered: set[int] = set()
    while len(answered) < count:
        chunk = raw.recv(BLOCK_BYTES)
        assert chunk, "the connection was closed"
        unpacker.feed(chunk)
        answered.update(message[1] for message in unpacker)


def test_no_more_answers_are_begun_than_have_room(
    loop: LoopThread, many_parts: tuple[ManyParts, Server], rpc: Encoding
) -> None:
    """A part of the room is one connection's, and short calls go on. All are carried out in the end."""
    parts, server = many_parts
    of_one, of_all = MOST_OF_ONE_BYTES // BLOCK_BYTES, MOST_MADE_BYTES // BLOCK_BYTES
    peers = [connect(server) for _ in range(5)]
    caller = AsyncCaller(loop, server.address, rpc)
    for number, peer in enumerate(peers):
        peer.sendall(gets(100))
        begun = min((number + 1) * of_one, of_all)
        wait_until(lambda begun=begun: parts.begun >= begun, 5, "the first calls")  # type: ignore[misc]
        caller.call(5, CommonMethods.identity)  # whatever could be begun has been begun by now
        assert parts.begun == begun
    peers[-1].sendall(msgpack.packb([0, 1000, "identity", []]))
    assert peers[-1].recv(100)
    last = caller.client.call(20, DataMethods.get, b"x" * 16, 0, 0)
    late = asyncio.run_coroutine_threadsafe(last, loop.loop)
    readers = [threading.Thread(target=until_answered, args=(peer, 100)) for peer in peers]
    for reader in readers:
        reader.start()
    loop.loop.call_soon_threadsafe(parts.may_answer.set)
    assert len(late.result(20).data) == BLOCK_BYTES
    for peer, reader in zip(peers, readers, strict=True):
        reader.join()
        peer.close()
    caller.close()


def test_who_hangs_up_waits_no_more(loop: LoopThread, many_parts: tuple[ManyParts, Server]) -> None:
    """What waits for room is not begun for nobody, and keeps nobody else waiting."""
    parts, server = many_parts
    of_all = MOST_MADE_BYTES // BLOCK_BYTES
    holders, waiting = [connect(server) for _ in range(4)], [connect(server) for _ in range(2)]
    for holder in holders:
        holder.sendall(gets(of_all // 4))
    wait_until(lambda: parts.begun == of_all, 5, "all of the room is taken")
    waiting[0].sendall(gets(10))
    body = pack_request("get", [b"x" * 16, 0, 0])
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    waiting[1].sendall(head.encode() + body)
    caller = AsyncCaller(loop, server.address, "msgpack")
    caller.call(5, CommonMethods.identity)
    for peer in waiting:
        peer.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # no more is read either
        peer.close()
    wait_until(lambda: len(server.connections) == 5, 5, "they are gone")
    loop.loop.call_soon_threadsafe(parts.may_answer.set)
    for holder in holders:
        until_answered(holder, of_all // 4)
        holder.close()
    assert len(caller.call(5, DataMethods.get, b"x" * 16, 0, 0).data) == BLOCK_BYTES
    assert parts.begun == of_all + 1
    caller.close()


def test_a_server_that_stops_refuses_what_waits_for_room(
    loop: LoopThread, many_parts: tuple[ManyParts, Server]
) -> None:
    """It was not begun: the caller may send it to another server."""
    parts, server = many_parts
    raw = connect(server)
    raw.sendall(gets(20))
    wait_until(lambda: parts.begun == MOST_OF_ONE_BYTES // BLOCK_BYTES, 5, "the first calls")
    drained = asyncio.run_coroutine_threadsafe(server.drain(), loop.loop)
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    refused: list[int] = []
    while len(refused) < 20 - parts.begun:
        chunk = raw.recv(BLOCK_BYTES)
        assert chunk, "the connection was closed"
        unpacker.feed(chunk)
        refused += [message[2][0] for message in unpacker]
    assert set(refused) == {Draining.fault_code}
    loop.loop.call_soon_threadsafe(parts.may_answer.set)
    while raw.recv(BLOCK_BYTES):
        pass
    drained.result(10)
    raw.close()
