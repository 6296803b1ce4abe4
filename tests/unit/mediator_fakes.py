"""In-memory data servers and a metadata server, to drive the mediator without processes or sockets."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mediator.assembly import Mediator
from tests.unit.virtual_time import run_in_virtual_time
from wire.config import ClusterConfig, DataServerConfig, Deadlines
from wire.digest import DIGEST_BYTES, PIECE_BYTES, block_digest, digest_of_list, piece_digest, piece_digests
from wire.errors import (
    BlockMissing,
    Busy,
    DeadlineExceeded,
    DigestMismatch,
    QuorumfsError,
    Unavailable,
)
from wire.messages import (
    AttributeChanges,
    Attributes,
    BlockPart,
    BlockRecord,
    Commit,
    Extent,
    FileMap,
    Identity,
    Lag,
    LagCount,
    MappedExtent,
    Milestone,
    Opened,
    RecentBlocks,
    Renewal,
    SmallReplicas,
    VotedPart,
)
from wire.quorum import Quorum
from wire.request import Request, Then

CLUSTER = "test"
VOTE_SECONDS = 0.4
SILENCE_SECONDS = 0.2


class Fake:
    """What fake servers share: being up, paused or slow."""

    kind = ""

    def __init__(self, number: int) -> None:
        self.number = number
        self.down = False
        self.paused = False
        self.delay_seconds = 0.0
        self.epoch = 1
        self.cluster = CLUSTER
        self.calls: list[str] = []
        self.fail_next: dict[str, list[QuorumfsError]] = {}

    def identity(self) -> Identity:
        return Identity(self.kind, self.cluster, self.number, self.epoch)


class FakeDataServer(Fake):
    """Blocks in a dictionary. `damage` and `lie` change them behind its back."""

    kind = "dataserver"

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.held: dict[bytes, tuple[BlockRecord, bytes, bytes]] = {}
        self.quarantine: list[tuple[bytes, bytes, str]] = []
        self.free_bytes = 10**9 - number
        self.scrub: dict[str, Any] = {}
        self.kept: list[Milestone] = []

    def damage(self, block: bytes) -> None:
        record, data, recorded = self.held[block]
        at = len(data) - 1
        self.held[block] = (
            record,
            data[:at] + bytes([data[at] ^ (1 << self.number)]) + data[at + 1 :],
            recorded,
        )

    def lie(self, block: bytes) -> None:
        data = bytes(byte ^ 0x4C for byte in self.held[block][1])  # never the right bytes, and all lie alike
        self.held[block] = BlockRecord(block, len(data), block_digest(data)), data, piece_digests(data)

    def is_good(self, record: BlockRecord) -> bool:
        held = self.held.get(record.block)
        return held is not None and held[0] == record and block_digest(held[1]) == record.digest

    def put(self, block: bytes, digest: bytes, data: bytes, durable: bool) -> None:
        if block_digest(data) != digest:
            raise DigestMismatch
        self.held.setdefault(block, (BlockRecord(block, len(data), digest), bytes(data), piece_digests(data)))

    def get(self, block: bytes, first_piece: int, piece_count: int) -> BlockPart:
        record, data, recorded = self._find(block)
        end = (first_piece + piece_count) * PIECE_BYTES if piece_count else len(data)
        return BlockPart(
            record.length,
            self._digests(data, recorded, first_piece, piece_count),
            data[first_piece * PIECE_BYTES : end],
        )

    def digest(self, block: bytes, first_piece: int, piece_count: int) -> bytes:
        _, data, recorded = self._find(block)
        if not recorded:
            return piece_digest(data)
        return digest_of_list(self._digests(data, recorded, first_piece, piece_count))

    def digests(self, parts: list[VotedPart]) -> list[bytes | None]:
        return [self.digest(*part) if part.block in self.held else None for part in parts]

    def read_small(self, sent: list[bytes], voted: list[bytes]) -> SmallReplicas:
        data = [self.held[block][1] if block in self.held else None for block in sent]
        return SmallReplicas(data, self.digests([VotedPart(block, 0, 0) for block in voted]))

    def keep_scrub(self, state: dict[str, Any]) -> None:
        self.scrub = state

    def keep_milestone(self, milestone: Milestone) -> None:
        self.kept.append(milestone)

    def milestones(self) -> list[Milestone]:
        return self.kept

    def _find(self, block: bytes) -> tuple[BlockRecord, bytes, bytes]:
        if block not in self.held:
            raise BlockMissing
        return self.held[block]

    @staticmethod
    def _digests(data: bytes, recorded: bytes, first: int, count: int) -> bytes:
        """Return the recorded digests, those of the pieces asked for computed now."""
        if not recorded:
            return b""
        now, last = piece_digests(data), first + count if count else len(recorded) // DIGEST_BYTES
        low, high = first * DIGEST_BYTES, last * DIGEST_BYTES
        return recorded[:low] + now[low:high] + recorded[high:]

    def repair(self, block: bytes, digest: bytes, data: bytes, note: str) -> str:
        record = BlockRecord(block, len(data), digest)
        if block_digest(data) != digest:
            raise DigestMismatch
        if self.is_good(record):
            return "good"
        loser = self.held.pop(block, None)
        if loser is not None:
            self.quarantine.append((block, loser[1], note))
        self.put(block, digest, data, False)
        return "filled" if loser is None else "replaced"

    def delete(self, blocks: list[bytes]) -> int:
        return sum(self.held.pop(block, None) is not None for block in blocks)

    def sync(self, blocks: list[bytes]) -> list[bytes]:
        return [block for block in blocks if block not in self.held]

    def inventory(self, after: bytes, limit: int) -> list[BlockRecord]:
        return [self.held[block][0] for block in sorted(self.held) if block > after][:limit]

    def status(self) -> dict[str, Any]:
        return {
            "blocks": len(self.held),
            "bytes_live": sum(len(data) for _, data, _ in self.held.values()),
            "quarantined": len(self.quarantine),
            "scrub": self.scrub,
            "free_bytes": self.free_bytes,
            "total_bytes": 2000 - self.number,
        }


class FakeMetaserver(Fake):
    """Committed blocks, garbage, live sessions."""

    kind = "metaserver"

    def __init__(self) -> None:
        super().__init__(0)
        self.committed: dict[bytes, BlockRecord] = {}
        self.waiting: list[bytes] = []
        self.garbage_blocks = 0
        self.repairs: list[dict[str, Any]] = []
        self.commits: list[tuple[int, Commit]] = []
        self.answers: set[Any] = set()
        self.uncommitted: set[bytes] = set()
        self.forgotten: list[bytes] = []
        self.lag: dict[int, set[bytes]] = {}
        self.recent: list[bytes] = []
        self.complete = True
        self.milestone = Milestone("fake", 0)
        self.found_older_ns = 0
        self.compared: list[tuple[list[Milestone], bool]] = []
        self.on_blocks: Callable[[], None] = lambda: None

    def supersede(self, block: bytes) -> None:
        del self.committed[block]
        self.waiting.append(block)

    def witnesses(self, blocks: list[bytes]) -> list[BlockRecord | None]:
        return [self.committed.get(block) for block in blocks]

    def collectable(self, blocks: list[bytes]) -> list[bytes]:
        return [block for block in blocks if block not in self.committed and block not in self.uncommitted]

    def blocks(self, after: bytes, limit: int) -> list[BlockRecord]:
        self.on_blocks()
        return [self.committed[block] for block in sorted(self.committed) if block > after][:limit]

    def garbage(self, limit: int, min_age_ms: int, after: bytes = b"") -> list[bytes]:
        start = self.waiting.index(after) + 1 if after in self.waiting else 0
        return self.waiting[start : start + limit]

    def forget(self, blocks: list[bytes]) -> None:
        self.forgotten += blocks
        self.waiting = [block for block in self.waiting if block not in set(blocks)]

    def note_lag(self, lag: list[Lag]) -> None:
        for block, numbers in lag:
            for number in numbers if block in self.committed else ():
                self.lag.setdefault(number, set()).add(block)

    def clear_lag(self, server: int, blocks: list[bytes]) -> None:
        self.lag.get(server, set()).difference_update(blocks)

    def lagging(self, server: int, limit: int, after: bytes = b"") -> list[BlockRecord]:
        lacked = [block for block in self.lag.get(server, ()) if block in self.committed]
        lacked.sort(key=lambda block: (-sum(block in each for each in self.lag.values()), block))
        if after:
            lacked = lacked[lacked.index(after) + 1 if after in lacked else len(lacked) :]
        return [self.committed[block] for block in lacked[:limit]]

    def lacking_servers(self, blocks: list[bytes]) -> list[int]:
        return [sum(block in lacking for lacking in self.lag.values()) for block in blocks]

    def lag_counts(self) -> list[LagCount]:
        found = [(number, self.lagging(number, 10**6)) for number in self.lag]
        return [LagCount(number, len(each), sum(r.length for r in each)) for number, each in found if each]

    def blocks_at_risk(self, spared: int) -> int:
        lacked = Counter(block for lag in self.lag.values() for block in lag if block in self.committed)
        return sum(count > spared for count in lacked.values())

    def recent_blocks(self) -> RecentBlocks:
        return RecentBlocks(self.complete, self.recent)

    def take_milestone(self) -> Milestone:
        return self.milestone

    def compare_milestones(self, kept: list[Milestone], enough: bool) -> int:
        self.compared.append((kept, enough))
        if any(milestone.number > self.milestone.number for milestone in kept):
            raise Busy
        return self.found_older_ns

    def vouch_recent(self) -> None:
        self.complete = True

    def commit(
        self, ticket: Any, ino: int, commit: Commit, lag: list[Lag] | None = None, birth: Any = None
    ) -> Attributes:
        self.commits.append((ino, commit))
        self.recent += [record.block for record in commit.blocks]
        self.answers.add(ticket)
        self.committed.update({record.block: record for record in commit.blocks})
        self.uncommitted -= set(self.committed)
        self.note_lag(lag or [])
        return self.getattr(ino)

    def create(self, ticket: Any, *_parameters: Any) -> Attributes:
        self.answers.add(ticket)
        return self.getattr(7)

    def answered(self, ticket: Any) -> bool:
        return ticket in self.answers

    def getattr(self, ino: int) -> Attributes:
        return Attributes(ino, 0o100644, 1, 0, 0, 0, 4, 4096, 0, 0, 0, 1)

    def file_map(self, ino: int, offset: int, limit: int) -> FileMap:
        run, at = [], 0
        for record in self.committed.values():
            if at + record.length > offset:
                run.append(MappedExtent(at, record.length, record.block, 0, record.length, record.digest))
            at += record.length
        return FileMap(1, at, run[:limit], len(run) <= limit)

    def small_files(self, inodes: list[int]) -> list[Opened | None]:
        """The inode n is made of the nth committed block, counted from 0."""
        records = list(self.committed.values())
        return [self._small_file(ino, records[ino]) if ino < len(records) else None for ino in inodes]

    def _small_file(self, ino: int, record: BlockRecord) -> Opened:
        extent = MappedExtent(0, record.length, record.block, 0, record.length, record.digest)
        return Opened(self.getattr(ino), FileMap(1, record.length, [extent], True))

    def files_of_block(self, block: bytes) -> list[int]:
        return [7] if block in self.committed else []

    def note_repairs(self, entries: list[dict[str, Any]]) -> None:
        self.repairs += entries

    def ledger(self, limit: int) -> list[dict[str, Any]]:
        return self.repairs[::-1][:limit]

    def paths_of(self, ino: int, limit: int) -> list[bytes]:
        return [b"/a.txt", b"/\xff"]

    def counts(self) -> dict[str, Any]:
        sizes = [record.length for record in self.committed.values()]
        blocks = {"blocks": len(sizes), "block_bytes": sum(sizes), "garbage_blocks": self.garbage_blocks}
        return {"inodes": 3, "free_inodes": 7, **blocks}

    def renew_alone(self, session: int) -> Renewal:
        return Renewal(self.epoch, 0)


class FakeClient:
    """Meets mediator.servers.Caller for one fake server."""

    def __init__(self, target: Fake, open_calls: set[asyncio.Task[None]]) -> None:
        self.target = target
        self.open_calls = open_calls

    def open_connection(self) -> int:
        return 0 if self.target.down else self.target.epoch

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        async def call() -> None:
            try:
                answer = await self._call(deadline_seconds, request.name, request.params)
            except QuorumfsError as error:
                answer = error
            then(answer)

        task = asyncio.get_running_loop().create_task(call())
        self.open_calls.add(task)
        task.add_done_callback(self.open_calls.discard)

    async def _call(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> Any:
        target = self.target
        if target.down:
            raise Unavailable("connection refused")
        target.calls.append(name)
        end = asyncio.get_running_loop().time() + deadline_seconds
        await asyncio.sleep(target.delay_seconds)
        while target.paused:
            if asyncio.get_running_loop().time() >= end:
                raise DeadlineExceeded(f"no answer within {deadline_seconds} s")
            await asyncio.sleep(0.005)
        if target.down:
            raise Unavailable("the connection broke")
        if target.fail_next.get(name):
            raise target.fail_next[name].pop(0)
        return getattr(target, name)(*params)

    async def close(self) -> None:
        pass


class World:
    """A mediator over fakes. Blocks that `commit` makes are on all data servers."""

    def __init__(self, quorum: Quorum, seed: int = 1, more_mediators: tuple[str, ...] = ()) -> None:
        self.random = random.Random(seed)
        self.data = {number: FakeDataServer(number) for number in range(1, quorum.servers + 1)}
        self.meta = FakeMetaserver()
        by_address: dict[str, Fake] = {f"127.0.0.1:{8000 + n}": fake for n, fake in self.data.items()}
        by_address["127.0.0.1:7000"] = self.meta
        config = ClusterConfig(
            cluster=CLUSTER,
            quorum=quorum,
            mediator_listen="127.0.0.1:0",
            metaserver_listen="127.0.0.1:7000",
            metaserver_directory=Path("meta"),
            data_servers=tuple(
                DataServerConfig(n, f"127.0.0.1:{8000 + n}", Path(f"data-{n}")) for n in self.data
            ),
            deadlines=Deadlines(
                vote_seconds=VOTE_SECONDS, silence_seconds=SILENCE_SECONDS, metadata_seconds=VOTE_SECONDS
            ),
            more_mediators=more_mediators,
        )
        self.open_calls: set[asyncio.Task[None]] = set()
        self.mediator = Mediator(config, lambda address, _: FakeClient(by_address[address], self.open_calls))

    def new_record(self, data: bytes) -> BlockRecord:
        return BlockRecord(self.random.randbytes(16), len(data), block_digest(data))

    def commit(self, data: bytes = b"1234") -> BlockRecord:
        record = self.new_record(data)
        for server in self.data.values():
            server.put(record.block, record.digest, data, False)
        self.meta.committed[record.block] = record
        return record

    def fault(self, record: BlockRecord, letter: str, number: int) -> None:
        """Make a replica corrupt (C), lying (L), missing (M), its server down (D), or leave it good (G)."""
        server = self.data[number]
        if letter == "C":
            server.damage(record.block)
        elif letter == "L":
            server.lie(record.block)
        elif letter == "M":
            server.delete([record.block])
        elif letter == "D":
            server.down = True

    async def look(self) -> None:
        """Have health look at every server once, and the refills that this begins end."""
        await self.mediator.health.first_look()
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing runs in the background."""
        await self.settle_within(20)

    async def settle_within(self, seconds: float) -> None:
        """Do so for so long. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while (  # noqa: ASYNC110
                len(self.mediator.background)
                or self.open_calls
                or self.mediator.read_path.later_votes.waiting
            ):
                await asyncio.sleep(0.002)

    async def read(self, record: BlockRecord, first: int = 0, count: int = 0) -> bytes:
        return (await self.mediator.read_path.read_block(record, first, count)).data


def commit_of(records: list[BlockRecord], durable: bool = False) -> Commit:
    """Return a commit that lays blocks one after the other."""
    extents, at = [], 0
    for record in records:
        extents.append(Extent(at, record.length, record.block, 0))
        at += record.length
    return Commit(0, extents, at, records, AttributeChanges(), durable)


def run(scenario: Coroutine[Any, Any, Any]) -> None:
    """Run one asynchronous scenario to its end in virtual time, within a minute of it."""
    with pytest.MonkeyPatch.context() as patch:
        run_in_virtual_time(patch, lambda: scenario, 60.0)


@asynccontextmanager
async def world(
    servers: int = 5, read: int = 3, write: int = 5, seed: int = 1, more_mediators: tuple[str, ...] = ()
) -> AsyncIterator[World]:
    """A world whose mediator has looked at every server; nothing is left running at the end."""
    made = World(Quorum(servers, read, write), seed, more_mediators)
    await made.look()
    try:
        yield made
    finally:
        await made.mediator.stop()
