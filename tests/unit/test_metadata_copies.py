"""Copies of the metadata as blocks: their layout, when they are due, and how they are kept on the servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mediator import manifest
from mediator.copies import MetadataCopies
from mediator.manifest import Manifest
from mediator.service import Service
from tests.unit.mediator_fakes import World
from wire.digest import BLOCK_BYTES, block_digest
from wire.errors import Busy, InternalError, InvalidArgument, QuorumfsError
from wire.messages import BlockRecord, Identity
from wire.quorum import Quorum

SIZE = 2 * BLOCK_BYTES + 5


class CopyingMetaserver:
    """What the metadata server answers about copies; the copy's bytes are those of `contents`."""

    def __init__(self, world: World) -> None:
        self.contents = bytes(range(256)) * (SIZE // 256 + 1)
        self.changes = "1"
        self.database = "mine"
        self.fenced = True
        self.in_doubt = self.found_older = False
        self.made = self.dropped = 0
        meta: Any = world.meta
        counts = meta.counts
        meta.counts = lambda: {
            **counts(),
            "changes": self.changes,
            "database": self.database,
            "fenced": self.fenced,
            "in_doubt": self.in_doubt,
            "found_older": self.found_older,
        }
        meta.begin_copy, meta.copy_progress = self.begin_copy, self.copy_progress
        meta.read_copy, meta.drop_copy = self.read_copy, self.drop_copy

    def begin_copy(self) -> int:
        self.made += 1
        return self.made

    def copy_progress(self, copy: int) -> dict[str, Any]:
        return {"state": "done", "bytes": SIZE, "copied_ns": 77, "changes": self.changes, "error": ""}

    def read_copy(self, copy: int, offset: int, length: int) -> bytes:
        return self.contents[:SIZE][offset : offset + length]

    def drop_copy(self, copy: int) -> None:
        self.dropped += 1


@asynccontextmanager
async def copying(world: World) -> AsyncIterator[tuple[MetadataCopies, CopyingMetaserver]]:
    meta = CopyingMetaserver(world)
    await world.look()
    part = world.mediator
    copies = MetadataCopies(
        "test", part.quorum, part.health, part.metadata, part.write_path, part.ledger, 1e-6
    )
    yield copies, meta
    await world.settle()
    await world.mediator.stop()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def copies_on(world: World, number: int) -> dict[int, int]:
    """Return how many blocks of each copy a server holds."""
    found: dict[int, int] = {}
    for block in world.data[number].held:
        if manifest.is_reserved(block):
            found[manifest.copy_of(block)] = found.get(manifest.copy_of(block), 0) + 1
    return found


def test_two_copies_are_kept_everywhere_and_older_ones_deleted() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        other = world.commit(b"a file's")
        async with copying(world) as (copies, meta):
            world.data[3].down = True
            await world.look()
            assert await copies.run_once()
            assert not await copies.run_once(), "nothing was changed"
            assert (meta.made, meta.dropped) == (1, 1)
            assert [len(copies_on(world, k)) for k in (1, 2, 3)] == [1, 1, 0]
            world.data[3].down = False
            await world.look()
            assert not await copies.run_once()
            assert copies_on(world, 3) == copies_on(world, 1), "who lacks a copy gets it"
            for text in ("2", "3"):
                await asyncio.sleep(0.002)
                meta.changes = text
                assert await copies.run_once()
            for number in world.data:
                assert list(copies_on(world, number).values()) == [4, 4]
                assert world.data[number].is_good(other)
            assert copies.blocks >= 8

    run(scenario())


def test_a_blank_server_gets_copies_back_even_where_all_must_take_a_write() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 3))
        async with copying(world) as (copies, meta):
            await copies.run_once()
            world.data[3].delete([block for block in world.data[3].held if manifest.is_reserved(block)])
            assert not await copies.run_once()
            assert copies_on(world, 3) == copies_on(world, 1) and meta.made == 1

    run(scenario())


def test_an_older_database_is_not_copied_over_newer_copies() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        async with copying(world) as (copies, meta):
            await copies.run_once()
            before = copies_on(world, 1)
            meta.changes, meta.in_doubt = "2", True
            await asyncio.sleep(0.002)
            assert not await copies.run_once()
            meta.in_doubt, meta.found_older = False, True
            for _ in range(3):
                with pytest.raises(InternalError, match="older one"):
                    await copies.run_once()
            assert (copies_on(world, 1), meta.made) == (before, 1)
            meta.found_older = False  # released
            assert await copies.run_once()

    run(scenario())


def test_without_a_write_quorum_the_old_copy_stays() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 3))
        async with copying(world) as (copies, meta):
            await copies.run_once()
            before = copies_on(world, 1)
            world.data[3].down = True
            await world.look()
            await asyncio.sleep(0.002)
            meta.changes = "2"
            for _ in range(3):
                with pytest.raises(QuorumfsError):
                    await copies.run_once()
            assert (copies_on(world, 1), meta.made) == (before, 1)
            meta.copy_progress = lambda copy: {"state": "failed", "error": "damaged"}  # type: ignore[method-assign]
            world.meta.copy_progress = meta.copy_progress  # type: ignore[attr-defined]
            world.data[3].down = False
            await world.look()
            with pytest.raises(QuorumfsError, match="damaged"):
                await copies.run_once()
            assert copies_on(world, 1) == before

    run(scenario())


def test_copies_are_given_to_who_lacks_them_though_none_can_be_made() -> None:
    async def scenario() -> None:
        world = World(Quorum(4, 2, 4))
        async with copying(world) as (copies, meta):
            await copies.run_once()
            world.data[2].delete([block for block in world.data[2].held if manifest.is_reserved(block)])
            world.data[3].down = True
            await world.look()
            meta.changes = "2"
            await asyncio.sleep(0.002)
            with pytest.raises(QuorumfsError):
                await copies.run_once()
            assert copies_on(world, 2) == copies_on(world, 1)

    run(scenario())


def test_a_copy_of_which_a_part_is_right_nowhere_stands_for_none() -> None:
    """One that failed came back with the only server that had taken it, and rotted there."""

    async def scenario() -> None:
        world = World(Quorum(3, 1, 3))
        async with copying(world) as (copies, meta):
            for text in ("1", "2"):
                meta.changes = text
                await asyncio.sleep(0.002)
                await copies.run_once()
            older, newer = sorted(copies_on(world, 1))
            part = manifest.block_of(newer, 1)
            world.data[1].damage(part)
            for number in (2, 3):
                world.data[number].delete([part])
            world.data[3].down = True
            await world.look()
            await copies.run_once()
            assert set(copies_on(world, 1)) == {older, newer}, "the third may have it"
            world.data[3].down = False
            await world.look()
            for _ in range(2):
                await asyncio.sleep(0.002)
                await copies.run_once()
            assert meta.made == 3, "another one is made in its place, though nothing was changed"
            for number in world.data:
                assert len(whole_copies(world, number)) == 2
                assert older in copies_on(world, number) and newer not in copies_on(world, number)

    run(scenario())


def test_what_is_left_of_a_copy_that_fails_is_deleted() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 3))
        async with copying(world) as (copies, meta):
            meta.contents = meta.contents[:BLOCK_BYTES]
            for _ in range(3):
                with pytest.raises(QuorumfsError, match="ended early"):
                    await copies.run_once()
            assert [copies_on(world, number) for number in world.data] == [{}, {}, {}]
            assert meta.dropped == 3

    run(scenario())


def test_copies_of_a_lost_database_are_left_alone_until_they_are_let_go() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        async with copying(world) as (copies, meta):
            await copies.run_once()
            before = [set(fake.held) for fake in world.data.values()]
            meta.database, meta.changes = "begun in its place", "2"
            for _ in range(3):
                await asyncio.sleep(0.002)
                with pytest.raises(QuorumfsError, match="rebuild --replace"):
                    await copies.run_once()
            assert [set(fake.held) for fake in world.data.values()] == before
            meta.fenced = False
            assert await copies.run_once()

    run(scenario())


def test_a_copy_whose_manifest_cannot_be_read_is_nobodys() -> None:
    """One that failed was left on one server, and rotted there: no other copy was ever made."""

    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        async with copying(world) as (copies, meta):
            await copies.run_once()
            (copy,) = copies_on(world, 1)
            for number in (2, 3):
                world.data[number].delete(list(world.data[number].held))
            world.data[1].damage(manifest.block_of(copy, 0))
            meta.changes = "2"
            await asyncio.sleep(0.002)
            assert await copies.run_once()
            assert [len(whole_copies(world, number)) for number in world.data] == [1, 1, 1]

    run(scenario())


def test_a_damaged_holder_does_not_spread_its_bytes() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 3))
        async with copying(world) as (copies, _):
            await copies.run_once()
            for block in [block for block in world.data[1].held if manifest.is_reserved(block)]:
                world.data[1].damage(block)
                world.data[3].delete([block])
            await copies.run_once()
            held = world.data[3].held
            assert len(held) == 4
            assert all(block_digest(data) == record.digest for record, data, _ in held.values())

    run(scenario())


def test_a_scrub_repairs_copies_from_what_their_manifests_say() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        world.commit(b"a file's")
        async with copying(world) as (copies, _):
            await copies.run_once()
            reserved = sorted(block for block in world.data[1].held if manifest.is_reserved(block))
            right = {block: world.data[1].held[block][1] for block in reserved}
            world.data[1].damage(reserved[0])  # the manifest itself
            world.data[1].lie(reserved[2])
            world.data[2].damage(reserved[1])
            (server,) = (s for s in world.mediator.health.servers if s.number == 1)
            await world.mediator.scrubs.hurry(server)
            while await world.mediator.scrubs._has_work(server):
                await world.mediator.scrubs._run_page(server)
            found = world.mediator.scrubs.progress(server)
            assert found is not None
            assert (found["corrupt"], found["repaired"], found["missing"]) == (2, 2, 0)
            assert (found["checked"], found["total_blocks"]) == (5, 5)
            for number, damaged in ((1, []), (2, [reserved[1]])):
                held = world.data[number].held
                assert [block for block in reserved if held[block][1] != right[block]] == damaged
            assert [block for block, _, _ in world.data[1].quarantine] == [reserved[0], reserved[2]]

    run(scenario())


def whole_copies(world: World, number: int) -> list[int]:
    """Return the copies that a server has whole, newest first, as their manifests say."""
    held = world.data[number].held
    manifests = [block for block in held if manifest.is_reserved(block) and manifest.is_manifest(block)]
    return sorted(
        (
            manifest.copy_of(block)
            for block in manifests
            if not manifest.lacks_parts(
                manifest.copy_of(block), held[block][1], [[record for record, _, _ in held.values()]]
            )
        ),
        reverse=True,
    )


def other_mediator(world: World) -> MetadataCopies:
    part = world.mediator
    return MetadataCopies("test", part.quorum, part.health, part.metadata, part.write_path, part.ledger, 1e-6)


def test_two_mediators_make_copies_at_once() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        async with copying(world) as (one, meta):
            busy: set[int] = set()
            begin, drop = meta.begin_copy, meta.drop_copy

            def begin_alone() -> int:
                if busy:
                    raise Busy("another copy is being made")
                busy.add(begin())
                return meta.made

            def drop_mine(copy: int) -> None:
                busy.discard(copy)
                drop(copy)

            world.meta.begin_copy, world.meta.drop_copy = begin_alone, drop_mine  # type: ignore[attr-defined]
            two = other_mediator(world)
            for turn in range(20):
                meta.changes = str(turn)
                await asyncio.gather(one.run_once(), two.run_once())
            await asyncio.gather(one.run_once(), two.run_once())
            for number in world.data:
                whole = whole_copies(world, number)
                assert len(whole) >= 2
                assert set(copies_on(world, number)) == set(whole), "a copy with a part too few"
            assert meta.made == meta.dropped

    run(scenario())


def test_a_copy_that_lost_its_parts_to_another_mediator_stands_for_none() -> None:
    """One stops before it puts its manifest; the other one makes a newer one, and deletes what looks old."""

    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        async with copying(world) as (one, meta):
            two, put = other_mediator(world), one._put
            await one.run_once()
            await asyncio.sleep(0.002)
            meta.changes = "2"

            async def put_late(block: bytes, data: bytes, *, durable: bool) -> bytes:
                if manifest.is_manifest(block):
                    await asyncio.sleep(0.002)
                    assert await two.run_once()
                return await put(block, data, durable=durable)

            one._put = put_late  # type: ignore[method-assign]
            await one.run_once()
            one._put = put  # type: ignore[method-assign]
            for number in world.data:
                whole = whole_copies(world, number)
                assert len(whole) == 2 and set(copies_on(world, number)) == set(whole)

    run(scenario())


def test_a_client_cannot_put_what_looks_like_a_copy() -> None:
    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        service = Service(world.mediator, Identity("mediator", "test", 0, 1))
        with pytest.raises(InvalidArgument):
            await service.put_block(manifest.block_of(5, 0), block_digest(b"x"), b"x", False)

    run(scenario())


def test_the_layout() -> None:
    told = Manifest("name", "mine", 5, SIZE, [bytes([n]) * 32 for n in range(3)])
    assert manifest.decode(manifest.encode(told)) == told
    for data in (b"", b"{}", b"[]", b"\xff", manifest.encode(told._replace(size=1)), b'{"format": 9}'):
        with pytest.raises(ValueError):
            manifest.decode(data)
    block = manifest.block_of(1_800_000_000_000, 7)
    assert manifest.is_reserved(block)
    assert manifest.copy_of(block) == 1_800_000_000_000
    assert not manifest.is_manifest(block)
    assert manifest.is_manifest(manifest.block_of(1_800_000_000_000, 0))
    assert not manifest.is_reserved((1).to_bytes(8, "big") + bytes(8))


def test_what_is_complete_superseded_and_due() -> None:
    def held(*copies: int) -> list[BlockRecord]:
        return [
            BlockRecord(manifest.block_of(copy, part), 1, bytes(32)) for copy in copies for part in (0, 1)
        ]

    assert manifest.complete([held(1, 2, 3), held(2, 3), held(3)], 2) == [3, 2]
    assert manifest.superseded([3], held(1, 2, 3)) == []
    assert manifest.superseded([3, 2], held(1, 2, 3)) == [r.block for r in held(1)]
    assert manifest.superseded([3, 2], held(4)) == [], "one that is being made"
    assert manifest.is_due(0, 5, 1000, changed=False)
    assert not manifest.is_due(5000, 5999, 1, changed=True)
    assert manifest.is_due(5000, 6000, 1, changed=True)
    assert not manifest.is_due(5000, 9000, 1, changed=False)
    assert manifest.is_due(9000, 5000, 1, changed=True)


@pytest.mark.parametrize("fault", ["down", "full"])
def test_no_copies_are_made_that_would_count_for_nothing(fault: str) -> None:
    """Where Qr > Qw: each look would make one more, and none would ever be deleted."""

    async def scenario() -> None:
        world = World(Quorum(3, 3, 2))
        async with copying(world) as (copies, meta):
            world.data[3].down = fault == "down"
            world.mediator.health.servers[2].full = fault == "full"
            await world.look()
            for _ in range(3):
                await asyncio.sleep(0.002)
                with pytest.raises(QuorumfsError, match="Qr=3"):
                    await copies.run_once()
            assert not copies_on(world, 1) and meta.made == meta.dropped == 0
            world.data[3].down = world.mediator.health.servers[2].full = False
            await world.look()
            assert await copies.run_once()
            assert [len(copies_on(world, number)) for number in world.data] == [1, 1, 1]

    run(scenario())


def test_an_inventory_that_does_not_move_on_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.copies.PAGE", 2)

    async def scenario() -> None:
        world = World(Quorum(3, 2, 2))
        async with copying(world) as (copies, _):
            await world.look()
            assert await copies.run_once()
            inventory = world.data[1].inventory
            world.data[1].inventory = lambda _, limit: inventory(b"", 1) * limit  # type: ignore[method-assign]
            with pytest.raises(InternalError, match="does not move on"):
                async with asyncio.timeout(5):
                    await copies.count_on(world.mediator.health.servers[0])
            assert await copies.count_on(world.mediator.health.servers[1]) == 4

    run(scenario())
