"""Blocks given without a call, both ends: what counts is not lost, and what is not certain does not count."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dataserver.block_rings
import dataserver.service
import mediator.block_rings
from dataserver.block_rings import AGAIN_SECONDS, IDLE_SECONDS, IN_USE_SECONDS, MOST_RINGS
from dataserver.marks import Milestones, ScrubMark
from dataserver.memory import MemoryStore
from dataserver.quarantine import Quarantine
from dataserver.segments import SegmentStore
from dataserver.service import DataService
from mediator.servers import Server
from wire.block_ring import MOST_BYTES, RING_BYTES, SLOTS, GivenBlock, pack_record, record_offset
from wire.digest import Buffer, block_digest
from wire.dispatch import Dispatch
from wire.errors import InternalError, QuorumfsError, Unavailable
from wire.messages import BlockRecord, BlockRing, Identity
from wire.methods import DataMethods
from wire.request import Request, Then
from wire.ring_file import RingFile
from wire.ring_head import Head, pack_head

RESERVE_BYTES = 16 * 1024 * 1024


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "shared"
    place.mkdir()
    monkeypatch.setattr(dataserver.block_rings, "SHARED_MEMORY", place)
    return place


class Clock:
    """The time of both ends."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (dataserver.block_rings, mediator.block_rings):
        monkeypatch.setattr(module, "time", clock)
    return clock


class FailingStore(MemoryStore):
    """Fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[QuorumfsError] = []
        self.has_room = True

    def take(self, block: bytes, digest: bytes, data: Buffer) -> None:
        if self.errors:
            raise self.errors.pop()
        super().take(block, digest, data)

    def has_room_for(self, blocks: int, length: int) -> bool:
        return self.has_room


class Client:
    """Meets mediator.servers.Caller: calls reach the data server's end at once."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        assert request.name == "open_ring"
        self._machine.asked += 1
        then(self._machine.rings.open() if self._machine.is_open else Unavailable("gone"))

    def open_connection(self) -> int:
        return self._machine.lives if self._machine.is_open else 0

    async def close(self) -> None:
        pass


class Machine:
    """A data server with its store, and a mediator that gives it blocks."""

    def __init__(self, place: Path, clock: Clock) -> None:
        place.mkdir(exist_ok=True)
        self._place, self.clock = place, clock
        self.store = FailingStore()
        self.is_open = True
        self.asked = self.lives = 0
        self.start()
        self._server = Server(1, "127.0.0.1:1", lambda address, lost: Client(self))
        self._mediator = mediator.block_rings.BlockRings([self._server], 1.0)

    def start(self) -> None:
        """Begin a life of the data server; what an earlier one had open is as a kill leaves it."""
        self.lives += 1
        self.rings = dataserver.block_rings.BlockRings(self._place, self.store)

    def offer(self, data: bytes | None = None, after: float = 0.001) -> tuple[BlockRecord, bool]:
        """Give a block a moment after the one before; tell whether it counts."""
        self.clock.now += after
        data = secrets.token_bytes(100) if data is None else data
        record = BlockRecord(secrets.token_bytes(16), len(data), block_digest(data))
        return record, self._mediator.give([self._server], record, data) == {1}

    def begin_run(self) -> None:
        """Put the first blocks of a run, which take calls."""
        for _ in range(2):
            assert not self.offer()[1]

    def give(self, count: int) -> list[BlockRecord]:
        """Give some blocks, which all count."""
        offered = [self.offer() for _ in range(count)]
        assert all(counts for _, counts in offered)
        return [record for record, _ in offered]

    def has(self, records: list[BlockRecord]) -> bool:
        return all(record.block in self.store.blocks for record in records)


@pytest.fixture
def machine(tmp_path: Path, memory: Path, clock: Clock) -> Iterator[Machine]:
    made = Machine(tmp_path / "data-1", clock)
    yield made
    made.rings.close()


def test_blocks_of_a_run_are_given_and_taken_in(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(5)
    assert not machine.has(given[:1]) and machine.rings.has_waiting()
    machine.rings.take_in()
    assert machine.has(given) and not machine.rings.has_waiting()


def test_one_after_a_pause_or_a_long_one_takes_a_call(machine: Machine) -> None:
    machine.begin_run()
    machine.give(1)
    machine.rings.take_in()
    assert not machine.offer(after=mediator.block_rings.RUN_SECONDS)[1]
    assert machine.offer(bytes(MOST_BYTES))[1]
    assert not machine.offer(bytes(MOST_BYTES + 1))[1]
    assert machine.offer()[1]
    machine.rings.take_in()


def test_those_given_before_a_kill_and_until_the_next_start_are_taken_in(
    machine: Machine, memory: Path
) -> None:
    machine.begin_run()
    given = machine.give(3)
    machine.rings.take_in()
    given += machine.give(3)
    machine.start()
    assert machine.has(given)
    machine.rings.end_idle()
    assert not list(memory.iterdir())


def test_what_is_written_after_the_next_start_does_not_count(machine: Machine) -> None:
    machine.begin_run()
    machine.give(1)
    machine.start()
    assert not machine.offer()[1]
    asked = machine.asked
    machine.clock.now += mediator.block_rings.ASK_AGAIN_SECONDS
    machine.begin_run()
    assert machine.asked == asked + 1 and machine.offer()[1]


def test_what_is_written_while_a_ring_ends_does_not_count_or_is_taken_in(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.begin_run()
    machine.give(1)
    usual = os.pwritev

    def restarted(*args: Any) -> int:
        machine.start()
        return usual(*args)

    monkeypatch.setattr(os, "pwritev", restarted)
    assert not machine.offer()[1]


def test_it_does_not_count_once_the_connection_has_ended(machine: Machine) -> None:
    machine.begin_run()
    machine.give(1)
    machine.is_open = False
    assert not machine.offer()[1]


def test_a_full_ring_takes_no_more_until_some_is_taken_in(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(SLOTS)
    assert not machine.offer(after=0.0)[1]
    machine.rings.take_in()
    given += machine.give(SLOTS)
    machine.rings.take_in()
    assert machine.has(given)


def test_a_server_that_does_not_come_along_gets_calls(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(1)
    assert not machine.offer(after=2 * mediator.block_rings.BEHIND_SECONDS)[1]
    assert not machine.offer()[1]
    machine.rings.take_in()
    given += machine.give(3)
    machine.rings.take_in()
    assert machine.has(given)


def test_one_that_was_idle_does_not_count_as_behind(machine: Machine) -> None:
    machine.begin_run()
    machine.give(1)
    machine.rings.take_in()
    assert machine.offer(after=0.9 * mediator.block_rings.RUN_SECONDS)[1]


def test_bytes_that_do_not_match_are_not_kept_and_hold_nothing_up(
    machine: Machine, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.begin_run()
    given = machine.give(3)
    (path,) = memory.iterdir()
    with path.open("r+b") as file:
        file.seek(record_offset(2) - given[1].length)
        file.write(bytes(given[1].length))
    machine.rings.take_in()
    assert [machine.has([record]) for record in given] == [True, False, True]
    assert "cannot be kept" in caplog.text


def test_what_the_store_cannot_take_is_tried_again_and_nothing_more_given_meanwhile(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.begin_run()
    given = machine.give(3)
    machine.store.errors = [InternalError("the disk failed")]
    machine.rings.take_in()
    assert not machine.has(given[:1]) and not machine.rings.has_waiting() and not machine.offer()[1]
    machine.rings.end_idle()
    assert not machine.has(given[:1])
    machine.clock.now += AGAIN_SECONDS
    machine.rings.end_idle()
    assert machine.has(given)
    assert caplog.text.count("tried again") == 1


def test_without_room_nothing_more_is_given(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(2)
    machine.store.has_room = False
    machine.rings.take_in()
    assert machine.has(given) and not machine.offer()[1]
    machine.clock.now += mediator.block_rings.ASK_AGAIN_SECONDS
    machine.begin_run()
    assert not machine.offer()[1]


def test_the_end_of_a_server_takes_in_all(machine: Machine, memory: Path) -> None:
    machine.begin_run()
    given = machine.give(4)
    machine.rings.close()
    assert machine.has(given) and not list(memory.iterdir())
    assert not machine.offer()[1]


def test_what_is_written_at_the_very_end_does_not_count(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the server has looked for the last time, and before the file is gone."""
    machine.begin_run()
    machine.give(1)
    usual, counted = RingFile.end, []

    def end(self: RingFile) -> None:
        counted.append(machine.offer()[1])
        usual(self)

    monkeypatch.setattr(RingFile, "end", end)
    machine.rings.close()
    assert counted == [False]


def test_what_cannot_be_taken_in_at_the_end_is_left_to_the_next_start(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(4)
    machine.store.errors = [InternalError("the disk failed")]
    machine.rings.close()
    assert not machine.offer()[1]
    machine.start()
    assert machine.has(given)


def test_what_cannot_be_taken_in_at_a_start_is_tried_again(machine: Machine) -> None:
    machine.begin_run()
    given = machine.give(4)
    machine.store.errors = [InternalError("the disk failed")]
    machine.start()
    assert not machine.has(given)
    machine.clock.now += AGAIN_SECONDS
    machine.rings.take_in()
    assert machine.has(given)


def test_a_ring_that_nobody_uses_is_ended(machine: Machine, memory: Path) -> None:
    machine.begin_run()
    given = machine.give(1)
    machine.rings.end_idle()
    assert list(memory.iterdir())
    machine.clock.now += IDLE_SECONDS + 1
    machine.rings.end_idle()
    assert machine.has(given) and not list(memory.iterdir())


def test_there_are_only_so_many_and_the_oldest_goes(machine: Machine, memory: Path) -> None:
    machine.begin_run()
    given = machine.give(1)
    for _ in range(MOST_RINGS - 1):
        machine.clock.now += 1
        assert machine.rings.open().term
    given += [record for record, counts in [machine.offer(after=0.1)] if counts]
    assert not machine.rings.open().term and len(list(memory.iterdir())) == MOST_RINGS
    machine.clock.now += IN_USE_SECONDS
    assert machine.rings.open().term and len(list(memory.iterdir())) == MOST_RINGS
    assert machine.has(given)


def test_that_of_another_start_of_the_machine_is_removed(
    machine: Machine, memory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.begin_run()
    given = machine.give(1)
    boot = tmp_path / "boot_id"
    boot.write_text("1" * 36 + "\n")
    monkeypatch.setattr(dataserver.block_rings, "BOOT_FILE", boot)
    machine.start()
    assert not machine.has(given) and not list(memory.iterdir())


def test_without_a_name_of_the_machines_start_there_is_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dataserver.block_rings, "BOOT_FILE", tmp_path / "none")
    machine.start()
    assert machine.rings.open() == BlockRing(b"", 0)


def test_what_others_have_put_there_is_left_alone_and_what_is_no_ring_removed(
    machine: Machine, memory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin = next(iter(memory.glob("*")), None) or Path(os.fsdecode(machine.rings.open().place))
    stem = begin.name.rpartition("-")[0]
    (memory / f"{stem}-directory").mkdir()
    (memory / f"{stem}-link").symlink_to(tmp_path / "elsewhere")
    other = memory / f"{stem}-other"
    other.write_bytes(begin.read_bytes())
    os.chown(other, 12345, 12345)
    (memory / f"{stem}-junk").write_bytes(b"junk")
    machine.start()
    machine.rings.end_idle()
    assert {path.name.rpartition("-")[2] for path in memory.iterdir()} == {"directory", "link", "other"}
    assert f"{other} is another user's" in caplog.text, "a server that another user ran has its blocks in it"
    other.unlink()


@pytest.mark.parametrize("planted", ["link", "other user's", "short", "other term", "other name"])
def test_a_file_that_is_not_the_ring_is_not_written(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    path = tmp_path / "quorumfs-blocks-planted"
    path.write_bytes(pack_head(Head(b"0" * 36, 0, 5, 0, SLOTS)).ljust(RING_BYTES, b"\0"))
    before = path.read_bytes()
    if planted == "other user's":
        os.chown(path, 12345, 12345)
    elif planted == "short":
        path.write_bytes(before[:-1])
        before = before[:-1]
    elif planted == "link":
        (tmp_path / "quorumfs-blocks-link").symlink_to(path)
        path = tmp_path / "quorumfs-blocks-link"
    elif planted == "other name":
        path = path.rename(tmp_path / "quorumfs-ring-planted")
    monkeypatch.setattr(
        machine.rings, "open", lambda: BlockRing(os.fsencode(path), 5 + (planted == "other term"))
    )
    machine.begin_run()
    assert not machine.offer()[1]
    assert path.read_bytes() == before


def test_a_mediator_asks_no_more_where_there_is_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.rings, "open", lambda: BlockRing(b"/nowhere/quorumfs-blocks-1", 5))
    for _ in range(100):
        machine.offer(after=0.2)
    assert machine.asked == 1


def test_a_store_on_disk_takes_them_and_keeps_its_reserve(tmp_path: Path, memory: Path, clock: Clock) -> None:
    machine = Machine(tmp_path / "data-1", clock)
    store = SegmentStore(tmp_path / "data-1", reserve_bytes=RESERVE_BYTES)
    machine.rings = dataserver.block_rings.BlockRings(tmp_path / "data-1", store)
    assert not store.has_room_for(1, MOST_BYTES)  # there is no segment yet
    first = secrets.token_bytes(10)
    store.put(bytes(16), block_digest(first), first)
    machine.begin_run()
    given = machine.give(SLOTS)
    machine.rings.take_in()
    assert all(store.length(record.block) == record.length for record in given)
    machine.rings.close()
    store.close()
    small = SegmentStore(tmp_path / "data-1", reserve_bytes=64 * 1024)
    rings = dataserver.block_rings.BlockRings(tmp_path / "data-1", small)
    assert rings.open() == BlockRing(b"", 0)
    rings.close()
    small.close()


def test_a_call_waits_for_what_was_given_while_a_thread_writes(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is not held up: it is the call that waits."""
    monkeypatch.setattr(dataserver.service, "MAINTAIN_SECONDS", 60.0)
    store = MemoryStore()
    rings = dataserver.block_rings.BlockRings(tmp_path, store)
    identity = Identity("dataserver", "test", 1, 1)
    losers = Quarantine(tmp_path / "losers", 1, 1.0)
    service = DataService(store, identity, ScrubMark(tmp_path), Milestones(tmp_path), losers, rings)
    ring = rings.open()
    data = b"given"
    given = GivenBlock(1, ring.term, len(data), bytes(16), block_digest(data))
    with Path(os.fsdecode(ring.place)).open("r+b") as file:
        file.seek(record_offset(1) - len(data))
        file.write(data + pack_record(given))

    async def scenario() -> None:
        service._writing = 1
        waits = service.bring_in()
        assert waits is not None
        await waits
        assert service.bring_in() is None
        assert store.length(given.block) == len(data)
        service._bringing = asyncio.get_running_loop().create_future()
        service._bringing.set_result(None)  # its callback comes at the loop's next turn, and calls before
        assert service.bring_in() is None

    asyncio.run(scenario())
    service.close()


def test_every_call_waits_until_nothing_is_left_to_wait_for() -> None:
    done: list[str] = []

    async def step() -> None:
        await asyncio.sleep(0)
        done.append("step")

    class Plain(MemoryStore):
        def count(self) -> int:
            done.append("count")
            return 7

    async def scenario() -> None:
        dispatch, waits = Dispatch(), [step(), step()]
        dispatch.register(DataMethods, Plain(), only=["count"], before=lambda: waits.pop() if waits else None)
        assert await dispatch.call("count", []) == 7 and done == ["step", "step", "count"]
        assert await dispatch.call("count", []) == 7 and done[3:] == ["count"]

    asyncio.run(scenario())
