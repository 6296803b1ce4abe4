"""A file that its first commit makes is made once, whatever is killed between the commit and its answer.

As test_exactly_once, with one session alone: births are refused to others. The same session removes the
file, or writes to it, before the commit is sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.cluster.detour import VICTIMS, Detour, Moment, Proxy, Trap
from tests.conftest import ClusterFactory
from tests.support import wait_until
from wire.blocking import BlockingClient
from wire.digest import block_digest
from wire.errors import QuorumfsError
from wire.messages import (
    ROOT_INODE,
    AttributeChanges,
    Attributes,
    Birth,
    BlockRecord,
    Commit,
    Extent,
    Ticket,
)
from wire.methods import MediatorMethods, NamespaceMethods
from wire.table import method_of

SECONDS = 60.0
CONTENT = b"first content"
MEDDLING = ["none", "removed", "written"]


class Lone:
    """The only session of a cluster, before both proxies and behind them, and what its births come to."""

    def __init__(self, made: Detour, stack: ExitStack) -> None:
        self.detour = made
        self.client = self._client(made.front.address, stack)
        self.behind = self._client(made.cluster.address("metaserver"), stack)
        self.session = self.client.call(SECONDS, NamespaceMethods.open_session, "lone").session
        self._sequences = {0: 0, 1: 0}
        self._count = 0

    @staticmethod
    def _client(address: str, stack: ExitStack) -> BlockingClient:
        client = BlockingClient([address])
        stack.callback(client.close)
        return client

    def ticket(self, slot: int) -> Ticket:
        self._sequences[slot] += 1
        return Ticket(self.session, slot, self._sequences[slot])

    def play(self, proxy: Proxy, moment: Moment, victims: tuple[str, ...], meddling: str) -> None:
        """Catch a birth at a point, kill, start again, and compare with what must have come of it."""
        self._count += 1
        name, block = f"file {self._count}".encode(), self._block()
        ino = self.client.call(SECONDS, NamespaceMethods.reserve_inodes, self.session, 1)
        proxy.trap = trap = Trap(moment, [self.session])
        call = Call(lambda: self._bear(ino, name, block))
        wait_until(trap.full.is_set, SECONDS, "the birth is caught")
        self._meddle(meddling, ino, name)
        self.detour.kill(victims, proxy)
        attributes = call.result()
        raw = trap.caught[self.session]
        assert raw is None or attributes == method_of(MediatorMethods.write_file).answer(raw)
        assert (attributes.ino, attributes.size, attributes.nlink) == (ino, len(CONTENT), 1)
        self._compare(meddling, ino, name)

    def _block(self) -> BlockRecord:
        block = self.session.to_bytes(8, "big") + self._count.to_bytes(8, "big")
        return BlockRecord(block, len(CONTENT), block_digest(CONTENT))

    def _bear(self, ino: int, name: bytes, record: BlockRecord) -> Attributes:
        extents = [Extent(0, len(CONTENT), record.block, 0)]
        commit = Commit(None, extents, len(CONTENT), [record], AttributeChanges(), False)
        birth = Birth(ROOT_INODE, name, 0o100640, 0, 0)
        return self.client.call(
            SECONDS, MediatorMethods.write_file, self.ticket(0), ino, commit, [CONTENT], birth
        )

    def _meddle(self, meddling: str, ino: int, name: bytes) -> None:
        if meddling == "removed":
            self.behind.call(SECONDS, NamespaceMethods.unlink, self.ticket(1), ROOT_INODE, name)
        elif meddling == "written":
            changes = AttributeChanges(mode=0o600)
            self.behind.call(SECONDS, NamespaceMethods.setattr, self.ticket(1), ino, changes)

    def _compare(self, meddling: str, ino: int, name: bytes) -> None:
        page = self.client.call(SECONDS, NamespaceMethods.read_directory, ROOT_INODE, b"", 100)
        found = [(a.ino, a.mode, a.size) for entry, a in page.entries if entry == name]
        mode = 0o100600 if meddling == "written" else 0o100640
        assert found == ([] if meddling == "removed" else [(ino, mode, len(CONTENT))])


class Call(threading.Thread):
    """A call under way."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._make, self._answer, self._error = make, None, None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._make()
        except QuorumfsError as error:
            self._error = error

    def result(self) -> Any:
        self.join(SECONDS)
        assert not self.is_alive(), "no answer"
        assert self._error is None, repr(self._error)
        return self._answer


@pytest.fixture
def lone(make_cluster: ClusterFactory) -> Iterator[Lone]:
    with ExitStack() as stack:
        detour = Detour(make_cluster(servers=1, read_quorum=1, write_quorum=1), stack)
        yield Lone(detour, stack)


@pytest.mark.parametrize("moment", ["before", pytest.param("sent", marks=pytest.mark.long), "after"])
@pytest.mark.parametrize("seam", ["front", "back"])
def test_killed_between_a_birth_and_its_answer(lone: Lone, seam: str, moment: Moment) -> None:
    proxy = {"front": lone.detour.front, "back": lone.detour.back}[seam]
    for victims in VICTIMS.values():
        for meddling in MEDDLING if moment == "after" else ["none"]:
            lone.play(proxy, moment, victims, meddling)
