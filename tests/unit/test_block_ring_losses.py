"""What ends a ring behind the back of who writes it: no block counts that nobody will take in."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

import pytest

import dataserver.block_rings
import dataserver.room
import mediator.block_rings
from dataserver.block_rings import AGAIN_SECONDS
from dataserver.segments import SegmentStore
from mediator.servers import Server
from tests.unit.test_block_rings import (
    RESERVE_BYTES,
    Clock,
    Machine,
    clock,
    machine,
    memory,
)
from wire.block_ring import SLOTS
from wire.digest import block_digest
from wire.errors import InternalError, NoSpace, QuorumfsError
from wire.messages import BlockRecord, BlockRing
from wire.request import Request, Then

__all__ = ["clock", "machine", "memory"]


def ring_files(memory: Path) -> list[Path]:
    return sorted(memory.iterdir())


def test_a_server_that_comes_back_with_another_directory_is_given_nothing_by_the_old_ring(
    machine: Machine, tmp_path: Path
) -> None:
    """As after a kill and a new disk: the mediator is connected again, and the old file is nobody's.

    The client here has but one connection: what tells several apart has to be added to it.
    """
    machine.begin_run()
    machine.give(3)
    machine.rings.take_in()
    machine.store.blocks.clear()
    other = tmp_path / "another"
    other.mkdir()
    machine.lives += 1
    machine.rings = dataserver.block_rings.BlockRings(other, machine.store)
    for _ in range(2):
        record, counts = machine.offer(after=0.2)
        machine.rings.take_in()
        assert not counts or machine.has([record])


def test_a_server_that_comes_back_after_its_ring_was_removed_is_given_nothing_by_it(
    machine: Machine, memory: Path
) -> None:
    """As a login manager does that removes a user's shared memory with the last of his sessions."""
    machine.begin_run()
    machine.give(3)
    machine.rings.take_in()
    for path in ring_files(memory):
        path.unlink()
    machine.start()
    for _ in range(2):
        record, counts = machine.offer(after=0.2)
        machine.rings.take_in()
        assert not counts or machine.has([record])


def test_what_is_written_into_a_removed_file_does_not_count(machine: Machine, memory: Path) -> None:
    machine.begin_run()
    machine.give(3)
    machine.rings.take_in()
    for path in ring_files(memory):
        path.unlink()
    record, counts = machine.offer()
    machine.start()
    assert not counts or machine.has([record])


def test_memory_without_room_is_left_as_it_was(
    machine: Machine, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(3):
        assert machine.rings.open() == BlockRing(b"", 0)
    assert not ring_files(memory)


@pytest.mark.parametrize("error", [InternalError("the disk failed"), NoSpace("it is full")], ids=str)
def test_while_what_was_given_waits_for_the_disk_no_other_ring_is_opened(
    machine: Machine, error: QuorumfsError
) -> None:
    machine.begin_run()
    machine.give(1)
    machine.store.errors = [error]
    machine.rings.take_in()
    assert not machine.offer()[1]
    machine.clock.now += AGAIN_SECONDS * 0.6
    machine.begin_run()
    record, counts = machine.offer()
    if machine.rings.has_waiting():
        machine.rings.take_in()  # as before any call
    assert not counts or machine.has([record])


def test_while_what_was_given_waits_for_the_disk_another_mediator_gives_nothing(machine: Machine) -> None:
    machine.begin_run()
    machine.give(1)
    server = Server(1, "127.0.0.1:1", lambda address, lost: machine._server.client)
    second = mediator.block_rings.BlockRings([server], 1.0)

    def offer() -> tuple[BlockRecord, bool]:
        machine.clock.now += 0.001
        data = secrets.token_bytes(50)
        record = BlockRecord(secrets.token_bytes(16), len(data), block_digest(data))
        return record, second.give([server], record, data) == {1}

    while not offer()[1]:
        assert machine.asked < 3
    machine.rings.take_in()
    machine.give(1)
    machine.store.errors = [InternalError("the disk failed")]
    machine.rings.take_in()
    record, counts = offer()
    if machine.rings.has_waiting():
        machine.rings.take_in()  # as before any call
    assert not counts or machine.has([record])
    second.close()


def test_a_head_that_cannot_be_written_does_not_end_the_ring(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.begin_run()
    machine.give(1)
    machine.rings.take_in()
    usual = os.pwrite

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    machine.clock.now += dataserver.block_rings.IDLE_SECONDS + 1
    machine.rings.end_idle()
    monkeypatch.setattr(os, "pwrite", usual)
    machine.offer()
    record, counts = machine.offer()
    machine.rings.take_in()
    assert not counts or machine.has([record])


def test_what_was_granted_fits_though_repairs_used_their_part(
    tmp_path: Path,
    memory: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 10 * RESERVE_BYTES
    monkeypatch.setattr(dataserver.room, "_free_bytes", lambda file: free)
    machine = Machine(tmp_path / "data-1", clock)
    store = SegmentStore(tmp_path / "data-1", reserve_bytes=RESERVE_BYTES)
    machine.rings = dataserver.block_rings.BlockRings(tmp_path / "data-1", store)
    store.put(bytes(16), block_digest(b"1"), b"1")
    machine.begin_run()
    free = RESERVE_BYTES // 2  # as repairs may leave it
    offered = [machine.offer() for _ in range(SLOTS)]
    machine.rings.take_in()
    assert all(store.length(record.block) == record.length for record, counts in offered if counts)
    machine.rings.close()
    store.close()


def test_answers_that_come_late_leave_no_file_open(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mediator that was stopped asks again before it has read the first answer."""
    waiting: list[Then] = []
    client = machine._server.client

    def begin(deadline_seconds: float, request: Request[object], then: Then) -> None:
        waiting.append(then)

    monkeypatch.setattr(client, "begin", begin)
    machine.begin_run()
    machine.clock.now += 10
    machine.begin_run()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for then in waiting:
        then(machine.rings.open())
    assert len(waiting) == 2
    machine._mediator.close()
    machine.rings.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
