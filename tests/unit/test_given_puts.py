"""Blocks given without a call, in what is around the rings: the write path, the service, the connection."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest

import dataserver.block_rings
import dataserver.room
import dataserver.service
from dataserver.block_rings import BlockRings
from dataserver.marks import Milestones, ScrubMark
from dataserver.memory import MemoryStore
from dataserver.quarantine import Quarantine
from dataserver.segments import SegmentStore
from dataserver.service import INLINE_BYTES, DataService
from mediator.servers import Server
from tests.support import wait_until
from tests.unit.mediator_fakes import World, run, world
from tests.unit.test_block_rings import RESERVE_BYTES, Clock, Machine, clock, machine, memory
from wire.address import UnixAddress, parse_address
from wire.block_ring import SLOTS, GivenBlock, pack_record, record_offset
from wire.client_msgpack import MsgpackLink
from wire.digest import Buffer, block_digest
from wire.dispatch import Dispatch
from wire.errors import InternalError, NoSpace, WriteFailed
from wire.messages import BlockRecord, BlockRing, Identity
from wire.methods import CommonMethods, DataMethods
from wire.request import request_of

__all__ = ["clock", "machine", "memory"]

DATA = b"new bytes"


# The write path


class Takers:
    """Stands in for the mediator's rings: these servers take what they are given."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.offered: list[tuple[list[int], BlockRecord]] = []

    def give(self, targets: Sequence[Server], record: BlockRecord, data: Buffer) -> Collection[int]:
        self.offered.append(([server.number for server in targets], record))
        return {server.number for server in targets if server.number in self.numbers}

    def close(self) -> None:
        pass


async def put(w: World, takers: Takers, durable: bool = False) -> BlockRecord:
    record = w.new_record(DATA)
    w.mediator.write_path._rings = takers  # type: ignore[assignment]
    await w.mediator.write_path.put_block(record.block, record.digest, DATA, durable)
    return record


def called(w: World, name: str = "put") -> list[int]:
    return [number for number, server in w.data.items() if name in server.calls]


def test_who_was_given_a_block_gets_no_call_and_all_others_do() -> None:
    async def scenario() -> None:
        async with world() as w:
            await put(w, Takers(1, 2, 4))
            assert called(w) == [3, 5]

    run(scenario())


def test_a_block_that_all_take_needs_no_call_at_all() -> None:
    async def scenario() -> None:
        async with world() as w:
            takers = Takers(1, 2, 3, 4, 5)
            record = await put(w, takers)
            assert not called(w) and takers.offered == [([1, 2, 3, 4, 5], record)]

    run(scenario())


def test_a_durable_block_is_offered_to_no_ring() -> None:
    async def scenario() -> None:
        async with world() as w:
            takers = Takers(1, 2, 3, 4, 5)
            await put(w, takers, durable=True)
            assert called(w) == [1, 2, 3, 4, 5] and not takers.offered

    run(scenario())


def test_those_that_are_given_do_not_make_up_for_those_that_fail() -> None:
    async def scenario() -> None:
        async with world() as w:
            w.data[5].fail_next["put"] = [InternalError("the disk failed")]
            with pytest.raises(WriteFailed, match="4 of 5 data servers took it"):
                await put(w, Takers(1, 2, 3, 4))

    run(scenario())


def test_what_is_lacking_is_told_with_the_commit_of_a_given_block() -> None:
    async def scenario() -> None:
        async with world(write=3) as w:
            w.data[5].fail_next["put"] = [InternalError("the disk failed")]
            record = await put(w, Takers(1, 2, 3, 4))
            await w.settle()
            assert [lag.servers for lag in w.mediator.write_path._lag.of_commit([record])] == [[5]]

    run(scenario())


# The data server's end


class Recorder(MemoryStore):
    """Notes in which order blocks come."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[bytes] = []

    def take(self, block: bytes, digest: bytes, data: Buffer) -> None:
        super().take(block, digest, data)
        self.order.append(block)


def test_blocks_are_taken_in_in_the_order_in_which_they_were_given(machine: Machine, tmp_path: Path) -> None:
    store = Recorder()
    machine.rings = BlockRings(tmp_path / "data-1", store)
    machine.begin_run()
    given = []
    for _ in range(3):
        given += machine.give(SLOTS - 5)
        machine.rings.take_in()
    assert store.order == [record.block for record in given]


def test_after_some_were_taken_in_as_many_more_fit_as_there_are_slots(machine: Machine) -> None:
    machine.begin_run()
    machine.give(7)
    machine.rings.take_in()
    assert [machine.offer(after=0.0)[1] for _ in range(SLOTS + 1)] == [True] * SLOTS + [False]
    machine.rings.take_in()
    assert len(machine.store.blocks) == 7 + SLOTS


def test_a_kill_before_the_head_says_how_far_it_was_takes_nothing_in_twice(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.begin_run()
    given = machine.give(5)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: 0)
        machine.rings.take_in()
    machine.start()
    assert machine.has(given) and len(machine.store.blocks) == 5 and not machine.store.quarantine


@pytest.mark.parametrize("length", [0, 1, 4096, 16 * 1024])
def test_blocks_of_any_length_come_as_they_were(machine: Machine, length: int) -> None:
    machine.begin_run()
    data = secrets.token_bytes(length)
    record, counts = machine.offer(data)
    machine.rings.take_in()
    assert counts and machine.store.blocks[record.block][1] == data


def test_a_disk_that_is_full_for_a_moment_takes_it_later(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(3)
    machine.store.errors = [NoSpace("it is full")]
    machine.rings.take_in()
    assert not machine.has(given[:1]) and not machine.offer()[1]
    machine.clock.now += dataserver.block_rings.AGAIN_SECONDS
    machine.rings.end_idle()
    assert machine.has(given)


def test_a_store_on_disk_that_was_killed_has_all_that_it_was_given(
    tmp_path: Path,
    memory: Path,
    clock: Clock,
) -> None:
    directory = tmp_path / "data-1"
    machine = Machine(directory, clock)
    first = SegmentStore(directory, reserve_bytes=RESERVE_BYTES)
    first.put(bytes(16), block_digest(b"1"), b"1")
    machine.rings = BlockRings(directory, first)
    machine.begin_run()
    given = machine.give(10)
    machine.rings.take_in()
    given += machine.give(10)
    second = SegmentStore(directory, reserve_bytes=RESERVE_BYTES)
    machine.rings = BlockRings(directory, second)
    for record in given:
        part = second.get(record.block, 0, 0)
        assert block_digest(bytes(part.data)) == record.digest
    machine.rings.close()
    assert not list(memory.iterdir())
    second.close()


def test_what_was_granted_before_the_disk_was_full_is_taken_from_the_reserve(
    tmp_path: Path, memory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10 * RESERVE_BYTES
    monkeypatch.setattr(dataserver.room, "_free_bytes", lambda file: free)
    machine = Machine(tmp_path / "data-1", clock)
    store = SegmentStore(tmp_path / "data-1", reserve_bytes=RESERVE_BYTES)
    machine.rings = BlockRings(tmp_path / "data-1", store)
    store.put(bytes(16), block_digest(b"1"), b"1")
    machine.begin_run()
    free = RESERVE_BYTES - 1
    given = machine.give(SLOTS)
    with pytest.raises(NoSpace):
        store.put(bytes(15) + b"2", block_digest(b"2"), b"2")
    machine.rings.take_in()
    assert all(store.length(record.block) == record.length for record in given)
    assert not machine.offer()[1]
    machine.rings.close()
    store.close()


# The service


class Slow(MemoryStore):
    """A put of many bytes holds the store until it is let go on, as a slow disk does."""

    puts_quickly = False

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()
        self.held = threading.Lock()

    def put(self, block: bytes, digest: bytes, data: Buffer) -> None:
        with self.held:
            if len(data) > INLINE_BYTES:
                self.began.set()
                assert self.may_end.wait(20)
            super().put(block, digest, data)


@pytest.fixture
def slow(tmp_path: Path, memory: Path) -> Iterator[tuple[Slow, DataService]]:
    store = Slow()
    rings = BlockRings(tmp_path, store)
    identity = Identity("dataserver", "test", 1, 1)
    losers = Quarantine(tmp_path / "losers", 1, 1.0)
    service = DataService(store, identity, ScrubMark(tmp_path), Milestones(tmp_path), losers, rings)
    yield store, service
    store.may_end.set()
    service.close()


def write(ring: BlockRing, number: int, data: bytes) -> GivenBlock:
    """Write a block into a ring, as a mediator does."""
    given = GivenBlock(number, ring.term, len(data), secrets.token_bytes(16), block_digest(data))
    with Path(os.fsdecode(ring.place)).open("r+b") as file:
        file.seek(record_offset(number) - len(data))
        file.write(data + pack_record(given))
    return given


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  another process would look so too
            await asyncio.sleep(0.001)


def test_while_a_long_put_holds_the_store_calls_wait_for_what_was_given_and_heartbeats_do_not(
    slow: tuple[Slow, DataService],
) -> None:
    store, service = slow
    long = bytes(INLINE_BYTES + 1)

    async def scenario() -> None:
        dispatch = Dispatch()
        dispatch.register(CommonMethods, service)
        dispatch.register(DataMethods, service, before=service.bring_in)
        ring = service.open_ring()
        putting = asyncio.create_task(dispatch.call("put", [bytes(16), block_digest(long), long, False]))
        await until(store.began.is_set)
        given = write(ring, 1, b"given")
        counting = asyncio.create_task(dispatch.call("count", []))
        for _ in range(20):
            await asyncio.wait_for(dispatch.call("identity", []), 5)
        assert not counting.done() and store.length(given.block) is None
        store.may_end.set()
        assert await asyncio.wait_for(counting, 20) == 2
        assert store.length(given.block) == 5
        await asyncio.wait_for(putting, 20)

    asyncio.run(scenario())


CALLS: dict[str, Callable[[GivenBlock], list[object]]] = {
    "get": lambda given: [given.block, 0, 0],
    "digest": lambda given: [given.block, 0, 0],
    "sync": lambda given: [[given.block]],
    "delete": lambda given: [[given.block]],
    "inventory": lambda given: [b"", 10],
    "read_small": lambda given: [[given.block], []],
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_answered_before_what_was_given_is_in(slow: tuple[Slow, DataService], name: str) -> None:
    store, service = slow

    async def scenario() -> None:
        dispatch = Dispatch()
        dispatch.register(DataMethods, service, before=service.bring_in)
        given = write(service.open_ring(), 1, b"given")
        answer = await dispatch.call(name, CALLS[name](given))
        if name == "sync":
            assert answer == []
        elif name == "delete":
            assert answer == 1 and store.length(given.block) is None
        elif name == "inventory":
            assert [record["block"] if isinstance(record, dict) else record[0] for record in answer]
        else:
            assert store.length(given.block) == 5

    asyncio.run(scenario())


def test_the_server_looks_by_itself_while_blocks_come(slow: tuple[Slow, DataService]) -> None:
    store, service = slow

    async def scenario() -> None:
        ring = service.open_ring()
        for number in range(1, 4):
            given = write(ring, number, b"given")
            await until(lambda given=given: store.length(given.block) is not None)  # type: ignore[misc]

    asyncio.run(scenario())


def test_a_put_by_a_call_has_it_look_again(
    slow: tuple[Slow, DataService], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of a run comes by a call, and the next ones may come without."""
    store, service = slow
    monkeypatch.setattr(dataserver.block_rings, "ACTIVE_SECONDS", 0.0)

    async def scenario() -> None:
        ring = service.open_ring()
        await asyncio.sleep(0)
        assert service._timer is None
        monkeypatch.setattr(dataserver.block_rings, "ACTIVE_SECONDS", 5.0)
        service.put(bytes(16), block_digest(b"first"), b"first", False)
        given = write(ring, 1, b"given")
        await until(lambda: store.length(given.block) is not None)

    asyncio.run(scenario())


def test_what_was_given_while_a_thread_wrote_is_in_when_the_service_ends(
    slow: tuple[Slow, DataService],
) -> None:
    store, service = slow
    long = bytes(INLINE_BYTES + 1)

    async def scenario() -> GivenBlock:
        ring = service.open_ring()
        putting = service.put(bytes(16), block_digest(long), long, False)
        assert putting is not None
        begun = asyncio.ensure_future(putting)
        await until(store.began.is_set)
        given = write(ring, 1, b"given")
        assert service.bring_in() is not None
        store.may_end.set()
        service.close()
        await begun
        return given

    given = asyncio.run(scenario())
    assert store.length(given.block) == 5


def test_the_end_of_the_service_takes_in_what_was_given_last(
    slow: tuple[Slow, DataService], memory: Path
) -> None:
    store, service = slow
    given = write(service._rings.open(), 1, b"given")
    service.close()
    assert store.length(given.block) == 5 and not list(memory.iterdir())


def test_what_no_call_and_no_look_brought_in_comes_with_the_background_work(
    slow: tuple[Slow, DataService], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, service = slow
    monkeypatch.setattr(dataserver.block_rings, "ACTIVE_SECONDS", 0.0)
    monkeypatch.setattr(dataserver.block_rings, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(dataserver.service, "MAINTAIN_SECONDS", 0.01)

    async def scenario() -> None:
        ring = service.open_ring()
        given = write(ring, 1, b"given")
        maintenance = asyncio.create_task(service.maintain_for_ever())
        await until(lambda: store.length(given.block) is not None)
        await until(lambda: not Path(os.fsdecode(ring.place)).exists())
        maintenance.cancel()

    asyncio.run(scenario())


# The connection


def test_a_connection_that_the_kernel_has_seen_end_is_not_open(tmp_path: Path) -> None:
    """The loop has not read that yet, and the server may be killed at any time."""

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            link = MsgpackLink(UnixAddress(str(tmp_path / "s")), 5.0, 10.0)
            assert not link.open_connection()
            link.begin(5.0, request_of(CommonMethods.identity), lambda answer: None)
            await until(lambda: link.connected)
            accepted, _ = listener.accept()
            assert link.open_connection()
            accepted.close()
            assert not link.open_connection() and link.connected
            await link.close()

    asyncio.run(scenario())


def test_a_tcp_connection_whose_server_was_killed_is_not_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            link = MsgpackLink(parse_address(f"127.0.0.1:{listener.getsockname()[1]}"), 5.0, 10.0)
            link.begin(5.0, request_of(CommonMethods.identity), lambda answer: None)
            await until(lambda: link.connected)
            accepted, _ = listener.accept()
            assert link.open_connection()
            accepted.close()  # with a call unread, as a kill would: it is reset
            wait_until(lambda: not link.open_connection(), 5, "the kernel knows")
            await link.close()

    asyncio.run(scenario())
