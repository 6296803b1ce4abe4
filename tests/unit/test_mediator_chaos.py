"""Everything at once over in-memory servers: reads, writes, corruption, crashes, blank restarts, garbage.

The faults are bounded so that every block keeps a good replica: then no read may ever see other bytes, no
block may be lost, and when the faults end, all replicas must become good and all inventories equal.
"""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.support import take_seed
from tests.unit.mediator_fakes import World, commit_of, run, world
from wire.errors import QuorumfsError
from wire.messages import BlockRecord, Ticket

ACTORS = 6
STEPS = 60


class Chaos:
    """Random users and random faults, from one seed."""

    def __init__(self, w: World, seed: int) -> None:
        self.w = w
        self.chance = random.Random(seed)
        self.files: dict[int, tuple[BlockRecord, bytes]] = {}
        self.reads = {"right": 0, "refused": 0}
        self.writes = 0
        self.sequences = itertools.count(1)

    async def use(self, actor: int) -> None:
        """Write and read one file of its own; whatever is answered must be its last committed bytes."""
        for _ in range(STEPS):
            await asyncio.sleep(self.chance.random() * 0.01)
            if actor not in self.files or self.chance.random() < 0.3:
                await self.write(actor)
            else:
                await self.read(actor)

    async def write(self, actor: int) -> None:
        data = self.chance.randbytes(self.chance.choice([1, 50, 5000]))
        record = self.w.new_record(data)
        self.w.meta.uncommitted.add(record.block)
        try:
            await self.w.mediator.write_path.write_file(
                Ticket(1, actor, next(self.sequences)), actor, commit_of([record]), [data]
            )
        except QuorumfsError:
            if record.block not in self.w.meta.committed:
                self.w.meta.uncommitted.discard(record.block)
                return
        before = self.files.get(actor)
        self.files[actor] = record, data
        self.writes += 1
        if before is not None:
            self.w.meta.supersede(before[0].block)

    async def read(self, actor: int) -> None:
        record, data = self.files[actor]
        try:
            assert await self.w.read(record) == data
            self.reads["right"] += 1
        except QuorumfsError:
            self.reads["refused"] += 1

    async def break_things(self) -> None:
        """Hurt one server after the other, but never the last good replica of a block."""
        while True:
            await asyncio.sleep(0.01)
            server = self.chance.choice(list(self.w.data.values()))
            kind = self.chance.choice(["damage", "lie", "lose", "blank", "crash", "pause", "meta"])
            if kind == "meta":
                self.w.meta.down = not self.w.meta.down
            elif kind == "crash":
                server.down, server.epoch = not server.down, server.epoch + 1
            elif kind == "pause":
                server.paused = not server.paused
            elif kind == "blank":
                if all(self.spares(record, server.number) for record in self.w.meta.committed.values()):
                    server.held.clear()
                    server.epoch += 1
            elif self.w.meta.committed:
                record = self.chance.choice(list(self.w.meta.committed.values()))
                if record.block not in server.held or not self.spares(record, server.number):
                    continue
                if kind == "lose":
                    server.delete([record.block])
                elif self.may_corrupt(record, server.number):
                    {"damage": server.damage, "lie": server.lie}[kind](record.block)

    def spares(self, record: BlockRecord, number: int) -> bool:
        """Whether another server has a good replica."""
        return any(s.is_good(record) for n, s in self.w.data.items() if n != number)

    def may_corrupt(self, record: BlockRecord, number: int) -> bool:
        """Whether a read quorum stays free of corruption: a repair does not overrule what a read refuses."""
        corrupt = {n for n, s in self.w.data.items() if record.block in s.held and not s.is_good(record)}
        return len(corrupt | {number}) <= len(self.w.data) - self.w.mediator.quorum.read

    async def heal(self) -> None:
        """End all faults, and wait until every replica of every block is good and nothing else is left."""
        self.w.meta.down = False
        for server in self.w.data.values():
            server.down = server.paused = False
            server.epoch += 1
        async with asyncio.timeout(20):
            while not self.is_whole():
                await asyncio.sleep(0.02)
                for record in self.w.meta.committed.values():
                    self.w.mediator.repairs.request(record.block)

    def is_whole(self) -> bool:
        committed = self.w.meta.committed
        return all(
            set(server.held) == set(committed) and all(map(server.is_good, committed.values()))
            for server in self.w.data.values()
        )


@pytest.mark.parametrize(("read", "write"), [(3, 5), (1, 5), (3, 3), (2, 4)])
def test_no_wrong_byte_and_no_loss_under_random_faults(
    monkeypatch: pytest.MonkeyPatch, read: int, write: int
) -> None:
    seed = take_seed()
    for name, value in {
        "mediator.health.HEARTBEAT_SECONDS": 0.02,
        "mediator.health.PROBE_SECONDS": 0.03,
        "mediator.refill.RETRY_SECONDS": 0.02,
        "mediator.refill.INSPECTION_SECONDS": 0.5,
        "mediator.collect.ROUND_SECONDS": 0.02,
        "tests.unit.mediator_fakes.VOTE_SECONDS": 0.1,
    }.items():
        monkeypatch.setattr(name, value)

    async def scenario() -> None:
        async with world(5, read, write, seed) as w:
            await w.mediator.start()
            chaos = Chaos(w, seed)
            breaking = asyncio.ensure_future(chaos.break_things())
            await asyncio.gather(*(chaos.use(actor) for actor in range(1, ACTORS + 1)))
            breaking.cancel()
            await chaos.heal()
            for actor in chaos.files:
                await chaos.read(actor)
            print(chaos.reads, chaos.writes, w.mediator.repairs.status())
            assert chaos.reads["right"] >= len(chaos.files)

    run(scenario())
