"""One message at a time lost, doubled or delayed, between all parts of a running cluster.

    client --front--> mediator --meta--> metaserver
                               --data-1 .. data-3--> data servers (over Unix sockets; the others over TCP)

For each kind of call that an operation makes over a link (learned by watching), the operation is done with
the first such call faulted; a cell is the worst outcome of all of these. "all" faults every message for as
long as the operation takes. After each, without faults, the cluster must become whole by itself, and every
file must be read right.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.fault_sweep.bench import Bench
from tests.fault_sweep.link import ALL, Link, MessageFault, Rule
from tests.fault_sweep.outcomes import (
    COUNTS,
    DEADLINES,
    NOT_TRIED,
    OPERATIONS,
    QUIET,
    READ_QUORUM,
    SERVERS,
    TOLERATED,
    Cell,
    worst,
)
from tools.cluster import LocalCluster
from wire.config import ClusterConfig, dumps

FAULTS: tuple[MessageFault, ...] = ("request lost", "answer lost", "doubled", "late", "too late")
TARGETS = ("mediator to data", "mediator to metadata", "mount to mediator")
LATE_SECONDS = 0.4
"""More than the delay of a hedge, less than any deadline."""
TOO_LATE_SECONDS = {
    "mediator to data": DEADLINES.vote_seconds + 0.5,
    "mediator to metadata": DEADLINES.metadata_seconds + 0.5,
    "mount to mediator": DEADLINES.metadata_seconds + 0.5,
}


class LinkedCluster(LocalCluster):
    """A local cluster whose mediator reaches all servers through links."""

    def __init__(self, made: LocalCluster, config: ClusterConfig) -> None:
        super().__init__(made.directory, made.config)
        self._mediator_config = made.directory / "mediator.toml"
        self._mediator_config.write_text(dumps(config, made.directory))

    def _command(self, name: str) -> list[str]:
        command = super()._command(name)
        if name == "mediator":
            command[command.index("--config") + 1] = str(self._mediator_config)
        return command


RESERVE_BYTES = 4 * 1024 * 1024
"""With a reserve of so little, data servers are given no blocks without a call: here messages are lost."""


class LinkedBench(Bench):
    """A cluster between links."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        made = LocalCluster.create(
            base / "linked",
            servers=SERVERS,
            read_quorum=READ_QUORUM,
            write_quorum=SERVERS,
            deadlines=DEADLINES,
            reserve_bytes=RESERVE_BYTES,
            **QUIET,
        )
        servers = made.config.data_servers
        self.data = [
            stack.enter_context(Link(s.listen, f"unix:{base}/data-{s.number}.socket")) for s in servers
        ]
        self.meta = stack.enter_context(Link(made.address("metaserver")))
        self.front = stack.enter_context(Link(made.address("mediator")))
        behind = dataclasses.replace(
            made.config,
            metaserver_listen=self.meta.address,
            data_servers=tuple(
                dataclasses.replace(server, listen=link.address)
                for server, link in zip(servers, self.data, strict=True)
            ),
        )
        before = dataclasses.replace(made.config, mediator_listen=self.front.address)
        cluster = stack.enter_context(LinkedCluster(made, behind))
        super().__init__(cluster, LocalCluster(made.directory, before))

    def links(self, target: str, count: int, operation: str) -> list[Link]:
        """Return the links of a target; of the data servers the blank one first, if one is refilled."""
        if target != "mediator to data":
            return [self.meta if target == "mediator to metadata" else self.front]
        order = [*self.data[-1:], *self.data[:-1]] if operation == "refill" else self.data
        return order[:count]

    def try_rule(self, links: Sequence[Link], rule: Rule, operation: str) -> str:
        """Do an operation with a rule on some links; return "" if no call met it."""

        def begin() -> None:
            for link in links:
                link.begin(rule)

        hits: list[int] = []

        def end() -> None:
            hits.extend(link.hit for link in links)
            for link in links:
                link.begin(None)

        outcome = self.try_once(operation, begin, end)
        return outcome if any(hits) or outcome != "right" else NOT_TRIED


def run_cell(bench: LinkedBench, cell: Cell, methods: Sequence[str], scope: str) -> str:
    """Return the worst outcome of one cell, which is lost if the fault should have been survived."""
    seconds = TOO_LATE_SECONDS[cell.target] if cell.fault == "too late" else LATE_SECONDS
    links = bench.links(cell.target, cell.servers or 1, cell.operation)
    found = []
    for method in [ALL] if scope == "all" else methods:
        fault: MessageFault = cell.fault  # type: ignore[assignment]
        outcome = bench.try_rule(links, Rule(fault, method, seconds), cell.operation)
        if outcome == "refused" and _bearable(cell):
            print(f"lost: {cell} {method}", file=sys.stderr)
            outcome = "lost"
        found.append(outcome)
    return worst(found)


def _bearable(cell: Cell) -> bool:
    """Tell whether the vote alone should make a fault unseen: reads, with enough of the other servers."""
    others = cell.servers + (cell.operation == "refill")
    return cell.fault in ("late", "doubled") or (
        cell.operation != "update" and cell.target == "mediator to data" and others <= TOLERATED
    )


def cells() -> Iterator[tuple[Cell, str]]:
    """Yield all cells, each with its scope: "each" kind of call, or "all" of them."""
    for target, scope, fault, operation in itertools.product(TARGETS, ("each", "all"), FAULTS, OPERATIONS):
        for count in COUNTS if target == "mediator to data" else (1,):
            yield Cell(target, fault, count, operation), scope


def learn(bench: LinkedBench) -> dict[tuple[str, str], list[str]]:
    """Return what calls each operation makes over each target's links."""
    found = {}
    for target, operation in itertools.product(TARGETS, OPERATIONS):
        links = bench.links(target, SERVERS, operation)
        bench.await_healed()
        if operation == "refill":
            bench.cluster.kill(f"data-{SERVERS}")
        for link in links:
            link.begin(None)
        outcome = bench.work(operation)()
        assert outcome == "right", f"{operation} without a fault: {outcome}"
        found[target, operation] = sorted(set().union(*(link.seen for link in links)))
    return found


def sweep(base: Path) -> Iterator[tuple[Cell, str]]:
    """Run all cells; yield each with its outcome."""
    with ExitStack() as stack:
        bench = LinkedBench(base, stack)
        methods = learn(bench)
        for cell, scope in cells():
            outcome = run_cell(bench, cell, methods[cell.target, cell.operation], scope)
            yield cell._replace(fault=f"{cell.fault}, {scope}"), outcome
