"""Full data servers: the pure rules, and what the mediator does, over in-memory servers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mediator.room import HOPE_SECONDS, LONGEST_SECONDS, ROOM_BYTES, enough_room, lacks_room
from mediator.servers import Server
from mediator.service import Service
from tests.unit.mediator_fakes import World, commit_of, run, world
from wire.errors import DeadlineExceeded, NoSpace, Unavailable, WriteFailed
from wire.messages import Identity, Ticket
from wire.quorum import Quorum

FULL, DOWN, LATE = NoSpace(), Unavailable(), DeadlineExceeded()
DATA = b"new bytes"


@pytest.mark.parametrize(
    ("write", "answers", "expected"),
    [
        (5, {1: FULL}, True),
        (5, {1: None, 2: FULL, 3: FULL, 4: FULL, 5: FULL}, True),
        (5, {1: FULL, 2: DOWN}, False),
        (4, {1: FULL, 2: DOWN}, True),
        (4, {1: FULL, 2: DOWN, 3: LATE}, False),
        (5, {1: DOWN}, False),
        (5, {}, False),
    ],
)
def test_when_a_put_failed_for_lack_of_room(write: int, answers: dict[int, Any], expected: bool) -> None:
    assert lacks_room(Quorum(5, 3, write), answers) is expected


@pytest.mark.parametrize(
    ("states", "write", "expected"),
    [("uuuuu", 5, True), ("uuuuf", 5, False), ("uuuuf", 4, True), ("uuffd", 3, False), ("uufdd", 4, True)],
)
def test_who_counts_as_able_to_take_writes(states: str, write: int, expected: bool) -> None:
    servers = [Server(number, "127.0.0.1:1", lambda *_: None) for number in range(1, 6)]  # type: ignore[arg-type,return-value]
    for server, state in zip(servers, states, strict=True):
        server.up, server.full = state != "d", state == "f"
    assert enough_room(Quorum(5, 3, write), servers) is expected


def make_full(w: World, *numbers: int) -> None:
    for number in numbers:
        w.data[number].fail_next["put"] = [NoSpace("no space is left") for _ in range(10)]
        w.data[number].free_bytes = ROOM_BYTES - 1


async def put(w: World) -> bytes:
    record = w.new_record(DATA)
    w.meta.uncommitted.add(record.block)
    await w.mediator.write_path.put_block(record.block, record.digest, DATA, False)
    return record.block


def test_a_full_server_refuses_nothing_if_another_one_is_back_unnoticed() -> None:
    async def scenario() -> None:
        async with world(read=3, write=4) as w:
            make_full(w, 2)
            w.mediator.room.note_full(w.mediator.health.servers[1])
            w.data[5].down = True
            await w.mediator.health.first_look()
            with pytest.raises(NoSpace):
                await put(w)
            w.data[5].down = False
            service = Service(w.mediator, Identity("mediator", "test", 0, 1))
            assert not (await service.heartbeat(1)).full
            w.mediator.health.servers[4].mark_down("it was restarted")
            assert await put(w) in w.data[5].held

    run(scenario())


def test_a_full_server_makes_writes_fail_with_no_space_and_still_votes() -> None:
    async def scenario() -> None:
        async with world(read=5) as w:
            record = w.commit()
            make_full(w, 2)
            with pytest.raises(NoSpace, match="data server 2"):
                await put(w)
            sent = w.data[1].calls.count("put")
            with pytest.raises(NoSpace):
                await put(w)
            assert w.data[1].calls.count("put") == sent, "found out at the call, before anything is sent"
            assert await w.read(record) == b"1234"
            heartbeat = await Service(w.mediator, Identity("mediator", "test", 0, 1)).heartbeat(1)
            assert heartbeat.full
            assert heartbeat.writable
            assert "delete files" in heartbeat.reason

    run(scenario())


def test_a_server_that_is_down_makes_it_no_matter_of_room() -> None:
    async def scenario() -> None:
        async with world() as w:
            make_full(w, 2)
            w.data[3].fail_next["put"] = [DeadlineExceeded("too late")]
            with pytest.raises(WriteFailed):
                await put(w)

    run(scenario())


def test_writes_go_on_with_a_full_server_that_the_quorum_can_do_without() -> None:
    async def scenario() -> None:
        async with world(write=4) as w:
            make_full(w, 2)
            await put(w)
            await w.mediator.room.look()
            tried = w.data[2].calls.count("put")
            block = await put(w)
            assert w.data[2].calls.count("put") == tried
            assert [number for number, server in w.data.items() if block in server.held] == [1, 3, 4, 5]

    run(scenario())


def test_a_server_with_room_again_gets_what_it_lacks() -> None:
    async def scenario() -> None:
        async with world(write=4) as w:
            make_full(w, 2)
            record = w.new_record(DATA)
            await w.mediator.write_path.write_file(Ticket(1, 0, 1), 7, commit_of([record]), [DATA])
            w.data[2].fail_next["repair"] = [NoSpace("no space is left") for _ in range(2)]
            await w.settle()
            w.mediator.health.servers[1].full = True
            w.data[2].fail_next.clear()
            w.data[2].free_bytes = 10**9
            w.data[2].held.pop(record.block, None)
            await w.mediator.room.look()
            await w.settle()
            assert w.data[2].is_good(record)

    run(scenario())


def test_a_write_waits_for_room_that_deleting_is_about_to_bring() -> None:
    async def scenario() -> None:
        async with world() as w:
            await w.mediator.room.look()
            make_full(w, 2)
            w.data[2].fail_next["put"] = [NoSpace("no space is left")]
            w.meta.garbage_blocks = 7
            looks = w.data[2].calls.count("status")

            def status() -> dict[str, Any]:
                if w.data[2].calls.count("status") > looks + 2:
                    w.data[2].free_bytes = 10**9
                return type(w.data[2]).status(w.data[2])

            w.data[2].status = status  # type: ignore[method-assign]
            block = await put(w)
            assert block in w.data[2].held

    run(scenario())


def test_a_write_does_not_wait_for_ever_for_room_that_never_is_enough() -> None:
    """Something is deleted again and again, and somebody else takes the room."""

    async def scenario() -> None:
        async with world() as w:
            make_full(w, 2)
            await w.mediator.room.look()
            loop = asyncio.get_running_loop()
            begun, count = loop.time(), w.meta.counts

            def counts() -> dict[str, Any]:
                w.meta.garbage_blocks += 1
                return count()

            w.meta.counts = counts  # type: ignore[method-assign]
            with pytest.raises(NoSpace):
                await put(w)
            assert HOPE_SECONDS <= loop.time() - begun <= LONGEST_SECONDS + 2

    run(scenario())
