"""A data server's disk that fails its calls: EIO and ENOSPC, of real processes.

The processes are started by `tests.fault_sweep.failing_dataserver`, which fails what a file beside the data
server's directory says, as long as it is there. When the fault is over, the servers are started anew, as
after a disk was replaced; then the cluster must become whole by itself.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.fault_sweep.bench import Bench
from tests.fault_sweep.failing_dataserver import FAULTS, fault_file
from tests.fault_sweep.outcomes import (
    COUNTS,
    DEADLINES,
    OPERATIONS,
    QUIET,
    READ_QUORUM,
    SERVERS,
    TOLERATED,
    Cell,
)
from tools.cluster import LocalCluster
from tools.processes import ClusterError, python_command
from wire.config import ConfigError


class FailingCluster(LocalCluster):
    """A local cluster whose data servers' disks can fail."""

    def _command(self, name: str) -> list[str]:
        command = super()._command(name)
        if name.startswith("data-"):
            usual = python_command("dataserver")
            command[: len(usual)] = python_command("tests.fault_sweep.failing_dataserver")
        return command


class DiskBench(Bench):
    """A cluster whose disks fail."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        made = LocalCluster.create(
            base / "failing",
            servers=SERVERS,
            read_quorum=READ_QUORUM,
            write_quorum=SERVERS,
            deadlines=DEADLINES,
            **QUIET,
        )
        cluster = stack.enter_context(FailingCluster(made.directory, made.config))
        super().__init__(cluster, made)

    def try_fault(self, fault: str, numbers: Sequence[int], operation: str) -> str:
        """Do an operation while the disks of these servers fail."""

        def begin() -> None:
            for number in numbers:
                fault_file(self.cluster.directory, number).write_text(fault)

        def end() -> None:
            for number in numbers:
                fault_file(self.cluster.directory, number).unlink()
                self.cluster.kill(f"data-{number}")
            self.cluster.start()

        return self.try_once(operation, begin, end)

    def start_blank(self) -> None:
        """Start the blank server; with a disk that fails it may refuse."""
        try:
            super().start_blank()
        except (ClusterError, ConfigError) as error:
            print(f"refused to start: {error}", file=sys.stderr)


def servers_of(count: int, operation: str) -> list[int]:
    """Return the servers to fault: the one that is refilled first."""
    order = [SERVERS, *range(1, SERVERS)] if operation == "refill" else list(range(1, SERVERS + 1))
    return order[:count]


def run_cell(bench: DiskBench, cell: Cell) -> str:
    """Return the outcome of one cell, which is lost if the vote should have borne the fault."""
    outcome = bench.try_fault(cell.fault, servers_of(cell.servers, cell.operation), cell.operation)
    bearable = cell.operation != "update" and cell.servers <= TOLERATED
    return "lost" if outcome == "refused" and bearable else outcome


def sweep(base: Path) -> Iterator[tuple[Cell, str]]:
    """Run all cells; yield each with its outcome."""
    with ExitStack() as stack:
        bench = DiskBench(base, stack)
        for fault, operation, count in itertools.product(FAULTS, OPERATIONS, COUNTS):
            cell = Cell("disk", fault, count, operation)
            yield cell, run_cell(bench, cell)
