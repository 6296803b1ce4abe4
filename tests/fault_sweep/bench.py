"""A running cluster that is faulted, worked with, and must become whole again when the fault is over."""

from __future__ import annotations

import itertools
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.fault_sweep.outcomes import CONTENT, DEADLINES, SERVERS, UPDATED, read, worst, write
from tools.access import ClientAccess
from tools.cluster import LocalCluster
from tools.health import ask_mediator, await_writable
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.errors import QuorumfsError
from wire.messages import VotedPart
from wire.methods import BookkeepingMethods, DataMethods

HUNG_SECONDS = (2 + 2 * len(CONTENT)) * DEADLINES.metadata_seconds + 4.0
"""Longer than the deadlines of an operation's calls: two for each file, and those of two sessions."""
HEALED_SECONDS = 40.0
REFILL_SECONDS = 15.0
LOOK_SECONDS = 0.05


class Bench:
    """A cluster, how clients reach it, and what its files must be."""

    def __init__(self, cluster: LocalCluster, clients: LocalCluster) -> None:
        """Start the cluster and fill it. `clients` tells how clients reach it while it is faulted."""
        self.cluster, self.clients = cluster, clients
        self.content = dict(CONTENT)
        self._updates = itertools.count(1)
        self._tried = b""
        """What the last update tried to write."""
        cluster.start()
        await_writable(cluster)
        write(cluster, self.content)

    def try_once(self, operation: str, begin: Callable[[], None], end: Callable[[], None]) -> str:
        """Do an operation between two calls that begin and end a fault; then see that all becomes whole."""
        self.await_healed()
        if operation == "refill":
            self.cluster.kill(f"data-{SERVERS}")
        begin()
        try:
            outcome = _within(self.work(operation), HUNG_SECONDS + REFILL_SECONDS)
        finally:
            end()
        try:
            self.await_healed()
        except AssertionError as error:
            print(error, file=sys.stderr)
            return "lost"
        return self._settled(outcome)

    def work(self, operation: str) -> Callable[[], str]:
        """Return what does an operation."""
        return {"read": self.read, "update": self.update, "refill": self.refill}[operation]

    def _settled(self, outcome: str) -> str:
        """Read everything without a fault; tell an update that was refused, and yet was done, from others."""
        access = ClientAccess(self.cluster)
        try:
            found = {name: access.read(name) for name in self.content}
        except OSError as error:
            print(f"still refused: {error}", file=sys.stderr)
            return "lost"
        finally:
            access.close()
        if outcome == "refused" and found[UPDATED] == self._tried != self.content[UPDATED]:
            outcome, self.content[UPDATED] = "unsure", self._tried
        return outcome if found == self.content else "wrong"

    def read(self) -> str:
        """Read all files by a new client."""
        self._tried = b""
        return self._by_client(
            lambda access: [read(access, name, data) for name, data in self.content.items()]
        )

    def update(self) -> str:
        """Replace a file, and read it by another client."""
        self._tried = f"update {next(self._updates)} ".encode() * 1000

        def replace(access: ClientAccess) -> list[str]:
            access.write(UPDATED, self._tried)
            self.content[UPDATED] = self._tried
            return [read(access, UPDATED, self._tried)]

        return self._by_client(replace)

    def refill(self) -> str:
        """Begin a data server blank; it must be whole while the fault lasts or soon after."""
        self._tried = b""
        shutil.rmtree(self.cluster.directory / f"data-{SERVERS}")
        (self.cluster.directory / f"data-{SERVERS}").mkdir()
        self.start_blank()
        end = time.monotonic() + REFILL_SECONDS
        while not self.is_healed() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        return self.read()

    def start_blank(self) -> None:
        """Start the data server that was emptied."""
        self.cluster.start(f"data-{SERVERS}")

    def _by_client(self, work: Callable[[ClientAccess], list[str]]) -> str:
        """Have a new client work through the link; what it cannot do is refused."""
        try:
            access = ClientAccess(self.clients)
        except ConfigError:
            return "refused"
        try:
            return worst(work(access))
        except OSError:
            return "refused"
        finally:
            access.close()

    def is_healed(self) -> bool:
        """Tell whether all servers are up, and have every committed block, with the right bytes."""
        status = ask_mediator(self.cluster, 5.0)
        if status is None or not status["writable"] or status["metaserver"]["state"] != "up":
            return False
        return all(server["state"] == "up" for server in status["servers"]) and not self.lacking()

    def lacking(self) -> dict[str, list[str]]:
        """Return the committed blocks that data servers have not, or not right, asked of them directly."""
        try:
            committed = self._ask("metaserver", BookkeepingMethods.blocks, b"", 1000)
            wanted = [VotedPart(record.block, 0, 0) for record in committed]
            found: dict[str, list[str]] = {}
            for name in self.cluster.server_names[2:]:
                digests = self._ask(name, DataMethods.digests, wanted)
                bad = [
                    r.block.hex() for r, digest in zip(committed, digests, strict=True) if digest != r.digest
                ]
                found |= {name: bad} if bad else {}
        except QuorumfsError as error:
            return {"no answer": [error.message]}
        return found

    def _ask(self, name: str, method: Any, *values: Any) -> Any:
        client = BlockingClient([self.cluster.address(name)])
        try:
            return client.call_once(5.0, method, *values)
        finally:
            client.close()

    def await_healed(self) -> None:
        """Wait until the cluster is whole. Raises AssertionError."""
        end = time.monotonic() + HEALED_SECONDS
        while not self.is_healed():
            assert time.monotonic() < end, f"not whole again: {self.lacking()}, {ask_mediator(self.cluster)}"
            time.sleep(LOOK_SECONDS)


def _within(work: Callable[[], str], seconds: float) -> str:
    """Return the outcome of some work, "hung" if there is none in time."""
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return "hung"
    if not outcomes:
        raise AssertionError("the operation itself failed")
    return outcomes[0]
