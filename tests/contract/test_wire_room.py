"""Answers that a server puts into memory of the caller: they come as others do, and are nobody else's."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.wire_support import IDENTITY, LoopThread
from tests.support import wait_until
from wire import lending
from wire.client import Client
from wire.config import Encoding
from wire.digest import Buffer
from wire.errors import DeadlineExceeded, Unavailable
from wire.lending import LEAST_ROOM_BYTES, ROOM_SLOTS, SLOT_BYTES, Lender, is_borrowed
from wire.messages import BlockPart
from wire.methods import DataMethods
from wire.request import request_of, settle
from wire.server import Server

SECONDS = 10.0


class Store:
    """Sends as many pseudo-random bytes as the first piece's number says, and notes the room that it got."""

    def __init__(self) -> None:
        self.rooms: list[Buffer | None] = []
        self.let = asyncio.Event()
        self.let.set()
        self.in_flight = 0

    async def get(
        self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None
    ) -> BlockPart:
        self.rooms.append(room)
        self.in_flight += 1
        try:
            await self.let.wait()
        finally:
            self.in_flight -= 1
        data = content(block, first_piece)
        if not is_borrowed(room) or len(room or b"") < len(data):
            return BlockPart(len(data), b"", data)
        assert isinstance(room, memoryview)
        room[: len(data)] = data
        return BlockPart(len(data), b"", room[: len(data)])

    def count(self) -> int:
        return 7


def content(block: bytes, length: int) -> bytes:
    return random.Random(block).randbytes(length)


class Rig:
    """A server and a client beside it that lends it memory."""

    def __init__(self, loop: LoopThread, rpc: Encoding = "msgpack", *, lends: bool = True) -> None:
        self.loop = loop
        self.store = loop.run(self._make_store())
        self.server = loop.run(self._make_server())
        address = loop.run(self.server.start("127.0.0.1:0"))
        self.client = Client(address, rpc, lender=Lender(1) if lends else None)
        assert loop.run(self.client.call(SECONDS, DataMethods.count)) == 7  # the offers went before it

    async def _make_store(self) -> Store:
        return Store()

    async def _make_server(self) -> Server:
        server = Server(IDENTITY)
        server.register(DataMethods, self.store, only=["get", "count"])
        return server

    def get(
        self, block: bytes, length: int, *, room_bytes: int = SLOT_BYTES, seconds: float = SECONDS
    ) -> Any:
        """Ask for a block whose answer has room; return its bytes."""

        async def ask() -> BlockPart:
            request = request_of(DataMethods.get, block, length, 0)
            request.room_bytes = room_bytes
            future: asyncio.Future[BlockPart] = asyncio.get_running_loop().create_future()
            self.client.begin(seconds, request, lambda answer: settle(future, answer))
            return await future

        return self.loop.run(ask()).data

    def let(self, *, answer: bool) -> None:
        event = self.store.let
        self.loop.loop.call_soon_threadsafe(event.set if answer else event.clear)

    def close(self) -> None:
        self.let(answer=True)
        self.loop.run(self.client.close())
        self.loop.run(self.server.drain())


@pytest.fixture
def rig(loop: LoopThread) -> Iterator[Rig]:
    made = Rig(loop)
    yield made
    made.close()


@pytest.mark.parametrize("length", [LEAST_ROOM_BYTES, 100_001, SLOT_BYTES])
def test_the_bytes_are_in_memory_of_the_caller(rig: Rig, length: int) -> None:
    data = rig.get(b"a", length)
    assert type(data) is memoryview
    assert data == content(b"a", length)
    assert is_borrowed(rig.store.rooms[-1])


def test_answers_that_are_in_use_are_not_overwritten(rig: Rig) -> None:
    blocks = [bytes((number,)) for number in range(2 * ROOM_SLOTS)]
    answers = [rig.get(block, SLOT_BYTES) for block in blocks]
    assert [type(answer) for answer in answers] == [memoryview] * ROOM_SLOTS + [bytes] * ROOM_SLOTS
    assert answers == [content(block, SLOT_BYTES) for block in blocks]
    kept = answers[0][1000:2000]
    del answers
    gc.collect()
    others = [rig.get(block, SLOT_BYTES) for block in blocks]
    assert [type(answer) for answer in others].count(memoryview) == ROOM_SLOTS - 1
    assert kept == content(blocks[0], SLOT_BYTES)[1000:2000]


def test_short_answers_and_those_that_do_not_fit_come_by_the_socket(rig: Rig) -> None:
    assert type(rig.get(b"a", 100, room_bytes=LEAST_ROOM_BYTES - 1)) is bytes
    assert rig.store.rooms[-1] is None
    assert type(rig.get(b"a", 70_000, room_bytes=69_999)) is bytes
    assert rig.get(b"a", 0) == b""


@pytest.mark.parametrize(("rpc", "lends"), [("xml", True), ("msgpack", False)])
def test_who_lends_nothing_gets_the_bytes(loop: LoopThread, rpc: Encoding, lends: bool) -> None:
    rig = Rig(loop, rpc, lends=lends)
    try:
        assert rig.get(b"a", 100_000) == content(b"a", 100_000)
        assert rig.store.rooms == [None]
    finally:
        rig.close()


def test_the_room_of_a_late_call_is_not_used_before_its_answer(rig: Rig) -> None:
    rig.let(answer=False)
    with pytest.raises(DeadlineExceeded):
        rig.get(b"late", SLOT_BYTES, seconds=0.1)
    rig.let(answer=True)
    wait_until(lambda: not rig.store.in_flight, 5, "the late call ends")
    answers = [rig.get(b"%d" % number, SLOT_BYTES) for number in range(ROOM_SLOTS)]
    assert answers == [content(b"%d" % number, SLOT_BYTES) for number in range(ROOM_SLOTS)]
    assert [type(answer) for answer in answers] == [memoryview] * ROOM_SLOTS, "it is free again"


def test_a_room_is_kept_while_its_call_is_late(rig: Rig) -> None:
    rig.let(answer=False)
    for number in range(ROOM_SLOTS):
        with pytest.raises(DeadlineExceeded):
            rig.get(b"%d" % number, SLOT_BYTES, seconds=0.05)
    with pytest.raises(DeadlineExceeded):
        rig.get(b"last", SLOT_BYTES, seconds=0.05)
    assert [is_borrowed(room) for room in rig.store.rooms] == [True] * ROOM_SLOTS + [False]


def test_what_a_server_writes_after_its_connection_broke_harms_no_answer(rig: Rig) -> None:
    """The memory belongs to one connection: that of the next one is another."""
    rig.let(answer=False)
    with pytest.raises(DeadlineExceeded):
        rig.get(b"late", SLOT_BYTES, seconds=0.05)
    late_room = rig.store.rooms[-1]
    for connection in list(rig.server.connections):
        rig.loop.loop.call_soon_threadsafe(connection.abort, "a test")
    with pytest.raises(Unavailable):
        while True:
            rig.loop.run(rig.client.call(SECONDS, DataMethods.count))
    rig.let(answer=True)
    assert rig.loop.run(rig.client.call(SECONDS, DataMethods.count)) == 7
    answers = [rig.get(b"%d" % number, SLOT_BYTES) for number in range(ROOM_SLOTS)]
    assert isinstance(late_room, memoryview)
    late_room[:] = bytes(SLOT_BYTES)
    assert [type(answer) for answer in answers] == [memoryview] * ROOM_SLOTS
    assert answers == [content(b"%d" % number, SLOT_BYTES) for number in range(ROOM_SLOTS)]


def test_an_answer_in_memory_that_was_not_lent_for_it_ends_the_connection(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_place(borrowed: Any, data: Buffer) -> bytes | None:
        place = real(borrowed, data)
        return place and place[:-8] + (99).to_bytes(8, "big")

    real = lending.Borrowed.place_of
    monkeypatch.setattr(lending.Borrowed, "place_of", another_place)
    with pytest.raises(Unavailable, match="cannot be read"):
        rig.get(b"a", SLOT_BYTES)
    monkeypatch.undo()
    assert rig.loop.run(rig.client.call(SECONDS, DataMethods.count)) == 7
    assert rig.get(b"a", SLOT_BYTES) == content(b"a", SLOT_BYTES)
