"""Everything at once over in-memory servers: reads, writes, corruption, crashes, blank restarts, garbage.

The faults are bounded so that every block keeps a good replica: then no read may ever see other bytes, no
block may be lost, and when the faults end, all replicas must become good and all inventories equal.
Time is virtual: the seed of a life is all that decides what happens in it, however busy the machine is.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from functools import partial

import pytest

from tests.support import take_seed
from tests.unit.mediator_fakes import FakeDataServer, World, commit_of, world
from tests.unit.virtual_time import run_in_virtual_time
from wire.digest import block_digest
from wire.errors import QuorumfsError
from wire.messages import BlockRecord, Ticket

LIVES = 3
"""So many worlds, each from a seed of its own, follow each other in one test."""
ACTORS = 6
STEPS = 60
HEAL_SECONDS = 20
SLOWEST_SECONDS = 0.005
LIFE_SECONDS = 120


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
            kind = self.chance.choice(["damage", "lie", "lose", "blank", "crash", "pause", "meta", "slow"])
            if kind == "meta":
                self.w.meta.down = not self.w.meta.down
            elif kind == "crash":
                server.down, server.epoch = not server.down, server.epoch + 1
            elif kind == "pause":
                server.paused = not server.paused
            elif kind == "slow":
                server.delay_seconds = self.chance.random() * SLOWEST_SECONDS
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
        loop = asyncio.get_running_loop()
        end = loop.time() + HEAL_SECONDS
        while wrong := self.tell_wrong():
            assert loop.time() < end, self.explain(wrong)
            await asyncio.sleep(0.02)
            for record in self.w.meta.committed.values():
                self.w.mediator.repairs.request(record.block)

    def tell_wrong(self) -> list[str]:
        """Return what is not as it should be on which server; nothing if all is whole."""
        return [
            f"server {server.number}, block {block.hex()[:8]}: {wrong}"
            for server in self.w.data.values()
            for block in sorted({*server.held, *self.w.meta.committed})
            if (wrong := self.tell_replica(server, block))
        ]

    def tell_replica(self, server: FakeDataServer, block: bytes) -> str:
        """Return what is wrong about one server's replica; "" if it is good."""
        record, held = self.w.meta.committed.get(block), server.held.get(block)
        if record is None:
            why = "waits for the collector" if block in self.w.meta.waiting else "nobody knows it"
            return f"left over ({'not committed' if block in self.w.meta.uncommitted else why})"
        if held is None:
            return (
                f"missing (lag {'known' if block in self.w.meta.lag.get(server.number, ()) else 'unknown'})"
            )
        if server.is_good(record):
            return ""
        return f"bytes {'good' if block_digest(held[1]) == record.digest else 'corrupt'}, record " + (
            "good" if held[0] == record else "wrong"
        )

    def explain(self, wrong: list[str]) -> str:
        """Return what is wrong, and in what state the mediator leaves it so."""
        mediator = self.w.mediator
        states = [
            f"server {each.number} is {each.state} {each.error}, refill {mediator.refills.progress(each)}"
            for each in mediator.health.servers
        ]
        rest = [
            f"metadata server {mediator.health.metaserver.state}, garbage {len(self.w.meta.waiting)}",
            f"repairs {mediator.repairs.status()}",
            f"collector {mediator.collector.status()}",
            f"background {len(mediator.background)} running, {mediator.background.failed} failed",
        ]
        return "\n".join([f"not whole {HEAL_SECONDS} s after the last fault:", *wrong, *states, *rest])


@pytest.mark.parametrize(("read", "write"), [(3, 5), (1, 5), (3, 3), (2, 4)])
def test_no_wrong_byte_and_no_loss_under_random_faults(
    monkeypatch: pytest.MonkeyPatch, read: int, write: int
) -> None:
    first = take_seed()
    for name, value in {
        "mediator.health.HEARTBEAT_SECONDS": 0.02,
        "mediator.health.PROBE_SECONDS": 0.03,
        "mediator.refill.RETRY_SECONDS": 0.02,
        "mediator.refill.INSPECTION_SECONDS": 0.5,
        "mediator.collect.ROUND_SECONDS": 0.02,
        "tests.unit.mediator_fakes.VOTE_SECONDS": 0.1,
        "tests.unit.mediator_fakes.SILENCE_SECONDS": 0.05,
    }.items():
        monkeypatch.setattr(name, value)

    async def live(seed: int) -> None:
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

    for seed in range(first, first + LIVES):
        print(f"this life: QUORUMFS_SEED={seed}")
        run_in_virtual_time(monkeypatch, partial(live, seed), LIFE_SECONDS)
