"""A client without a mount: writes and reads whole small files through the mediator, and looks behind it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.digest import BLOCK_BYTES, block_digest, part_matches
from wire.errors import QuorumfsError
from wire.messages import (
    ROOT_INODE,
    AttributeChanges,
    BlockRecord,
    Commit,
    Extent,
    Ticket,
)
from wire.methods import (
    BookkeepingMethods,
    CommonMethods,
    DataMethods,
    LabMethods,
    MediatorMethods,
    NamespaceMethods,
)

SECONDS = 15.0


class QuorumClient:
    """One session at a cluster's mediator, and a client of every server behind it."""

    def __init__(self, cluster: LocalCluster, stack: ExitStack) -> None:
        def client(name: str) -> BlockingClient:
            made = BlockingClient([cluster.address(name)], cluster.config.rpc)
            stack.callback(made.close)
            return made

        self.cluster = cluster
        self.mediator = client("mediator")
        self.meta = client("metaserver")
        self.data = {s.number: client(f"data-{s.number}") for s in cluster.config.data_servers}
        self.session = self.begin_session()
        self._sequence = 0
        self._blocks = 0

    def begin_session(self) -> int:
        """Return the number of a new session."""
        return self.mediator.call(SECONDS, NamespaceMethods.open_session, "test").session

    def ticket(self) -> Ticket:
        self._sequence += 1
        return Ticket(self.session, 0, self._sequence)

    def new_block(self, data: bytes) -> BlockRecord:
        self._blocks += 1
        block = self.session.to_bytes(8, "big") + self._blocks.to_bytes(8, "big")
        return BlockRecord(block, len(data), block_digest(data))

    # Files

    def create(self, name: str) -> int:
        """Make an empty file in the root directory; return its inode."""
        mode = stat.S_IFREG | 0o644
        parameters = (ROOT_INODE, name.encode(), mode, 0, 0, 0, b"", False)
        return self.mediator.call(SECONDS, NamespaceMethods.create, self.ticket(), *parameters).ino

    def write(self, ino: int, data: bytes, durable: bool = False) -> list[BlockRecord]:
        """Replace a file's contents in one call; return its blocks."""
        payload = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        records = [self.new_block(part) for part in payload]
        extents = [
            Extent(index * BLOCK_BYTES, record.length, record.block, 0)
            for index, record in enumerate(records)
        ]
        commit = Commit(0, extents, len(data), records, AttributeChanges(), durable)
        self.mediator.call(SECONDS, MediatorMethods.write_file, self.ticket(), ino, commit, payload)
        return records

    def make(self, name: str, data: bytes) -> tuple[int, list[BlockRecord]]:
        """Make a file; return its inode and blocks."""
        ino = self.create(name)
        return ino, self.write(ino, data)

    def read(self, ino: int) -> bytes:
        """Return a file's contents, each block voted on and verified here once more."""
        run = self.mediator.call(SECONDS, NamespaceMethods.file_map, ino, 0, 1000)
        data = bytearray(run.size)
        for extent in run.extents:
            witness = BlockRecord(extent.block, extent.block_length, extent.digest)
            part = self.mediator.call(SECONDS, MediatorMethods.read_block, ino, witness, 0, 0)
            assert part_matches(extent.digest, extent.block_length, 0, part.piece_digests, part.data)
            start = extent.block_offset
            data[extent.offset : extent.offset + extent.length] = part.data[start : start + extent.length]
        return bytes(data)

    # Faults

    def corrupt(self, record: BlockRecord, *numbers: int, kind: str = "flip") -> None:
        """Damage the replicas of these servers."""
        for number in numbers:
            self.data[number].call(SECONDS, LabMethods.corrupt, record.block.hex(), kind)

    def kill(self, *numbers: int) -> None:
        """End data servers with SIGKILL, and wait until the mediator knows."""
        for number in numbers:
            self.cluster.kill(f"data-{number}")
        self.await_states("down", *numbers)

    # Looking

    def status(self) -> dict[str, Any]:
        """Return the mediator's status."""
        return self.mediator.call(SECONDS, CommonMethods.status)

    def await_states(self, state: str, *numbers: int, deadline_seconds: float = 15.0) -> None:
        """Wait until the mediator sees these servers (all, if none is named) in a state."""

        def seen() -> bool:
            servers = self.status()["servers"]
            return all(s["state"] == state for s in servers if not numbers or s["number"] in numbers)

        wait_until(seen, deadline_seconds, f"data servers {numbers or 'all'} are {state}")

    def verdicts(self, ino: int) -> list[dict[str, str]]:
        """Return who votes what now on each block of a file."""
        explained = self.mediator.call(SECONDS, MediatorMethods.explain, ino)
        return [block["verdicts"] for block in explained["blocks"]]

    def await_all_good(self, ino: int) -> None:
        """Wait until every replica of a file is good."""
        good = {str(number): "good" for number in self.data}
        wait_until(
            lambda: all(v == good for v in self.verdicts(ino)), 15.0, f"all replicas of inode {ino} are good"
        )

    def inventories(self) -> list[list[BlockRecord]]:
        """Return what each data server has."""
        return [c.call(SECONDS, DataMethods.inventory, b"", 100_000) for c in self.data.values()]

    def await_equal_to_committed(self, deadline_seconds: float = 20.0) -> None:
        """Wait until every data server has exactly what is committed."""

        def equal() -> bool:
            committed = self.meta.call(SECONDS, BookkeepingMethods.blocks, b"", 100_000)
            return all(inventory == committed for inventory in self.inventories())

        wait_until(equal, deadline_seconds, "all inventories equal the committed blocks")

    def quarantined(self) -> list[int]:
        """Return how many copies each data server has in quarantine."""
        return [c.call(SECONDS, CommonMethods.status)["quarantined"] for c in self.data.values()]

    def last_refusal(self, ino: int) -> dict[str, Any] | None:
        """Return the last refused call of a file."""
        explained = self.mediator.call(SECONDS, MediatorMethods.explain, ino)
        return explained["last_refusal"]


@contextmanager
def connected(cluster: LocalCluster) -> Iterator[QuorumClient]:
    """Start a cluster; yield a client of it when all data servers are up and nothing is being refilled."""
    cluster.start()
    with ExitStack() as stack:
        client = QuorumClient(cluster, stack)
        client.await_states("up")
        yield client


def outcome(call: Any, *args: Any, right: Any = None) -> str:
    """Return "right", "wrong" or "refused", as a cell of the evaluation tables."""
    try:
        answer = call(*args)
    except QuorumfsError:
        return "refused"
    return "right" if right is None or answer == right else "wrong"
