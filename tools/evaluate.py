"""The command `evaluate`: run real clusters under faults, and print the tables beside the model.

It plans, shows progress, and writes what was measured; measure.py measures, records.py judges, tables.py
and html_report.py draw. Exit status 0 only if every cell is as the model says and none is wrong or stale.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import mounts
from tools.access import ClientAccess, MountAccess
from tools.cluster import LocalCluster
from tools.html_report import render_html
from tools.measure import Laboratory, Provenance
from tools.output import check_writable, console
from tools.progress import Bar, progress_bar
from tools.records import PUBLISHED_SETTINGS, Cell, Record, dumps, plan_cells
from tools.state_directory import forget_rings
from tools.tables import print_tables
from tools.version import describe_version
from wire.config import ConfigError, Deadlines, Encoding
from wire.quorum import Quorum

DEADLINES = Deadlines(
    metadata_seconds=10.0, read_seconds=5.0, write_seconds=5.0, vote_seconds=2.0, silence_seconds=3.0
)
"""Shorter than usual, so that a call which ends at its deadline does not end the evaluation's."""

START_SECONDS = 4.0
CRASH_SECONDS = 1.5
RESTART_SECONDS = 0.6
CELL_SECONDS = 0.15
"""What a cluster's start, a round of crashes, one server's restart and a cell are estimated to take."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and how."""

    settings: tuple[Quorum, ...]
    through_mount: bool
    rpc: Encoding
    seed: int
    keep: Path | None


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add evaluate."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure what reads and writes do under faults, beside the model",
        description="Without N, Qr and Qw: the published settings, N=1, and N=5 with Qw=5 and every Qr.",
    )
    parser.add_argument("--servers", type=int, metavar="N", help="measure this setting alone (default: 5)")
    parser.add_argument(
        "--read-quorum", type=int, metavar="QR", help="of that setting (default: more than half of N)"
    )
    parser.add_argument("--write-quorum", type=int, metavar="QW", help="of that setting (default: N)")
    parser.add_argument("--no-mount", action="store_true", help="through the client library, without FUSE")
    parser.add_argument("--rpc", choices=["msgpack", "xml"], default="msgpack", help="what the parts speak")
    parser.add_argument("--seed", type=int, help="repeat the choices of an earlier run (default: a new one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the clusters' directories in DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; return the exit status."""
    plan = make_plan(arguments)
    for file in (arguments.json, arguments.html):
        check_writable(file)
    if plan.through_mount:
        mounts.check_fuse()
    records: list[Record] = []
    try:
        for record in measure_all(plan):
            records.append(record)
    except BaseException:
        # What was measured is written even if the run ended early.
        _write(records, arguments)
        raise
    print_tables(records, console(wide=120))  # before the files, whose disk may be full by now
    _write(records, arguments)
    for file in filter(None, (arguments.json, arguments.html)):
        print(f"written: {file}")
    print(f"seed: {plan.seed}")
    return 1 if any(record.flagged for record in records) else 0


def _write(records: list[Record], arguments: argparse.Namespace) -> None:
    if arguments.json is not None:
        arguments.json.write_text(dumps(records))
    if arguments.html is not None:
        arguments.html.write_text(render_html(records))


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the options ask for. Raises ConfigError."""
    given = (arguments.servers, arguments.read_quorum, arguments.write_quorum)
    settings = PUBLISHED_SETTINGS
    if any(value is not None for value in given):
        servers = 5 if arguments.servers is None else arguments.servers
        read = servers // 2 + 1 if arguments.read_quorum is None else arguments.read_quorum
        write = servers if arguments.write_quorum is None else arguments.write_quorum
        try:
            settings = (Quorum(servers, read, write),)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    if arguments.keep is not None:
        _check_empty(arguments.keep)
    return Plan(settings, not arguments.no_mount, arguments.rpc, seed, arguments.keep)


def _check_empty(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        occupied = any(directory.iterdir())
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used: {error.strerror}; name another one") from None
    if occupied:
        raise ConfigError(f"{directory}: is not empty; name a new directory with --keep")


def measure_all(plan: Plan) -> Iterator[Record]:
    """Measure every cell of every setting, each setting on a cluster of its own, with a progress bar."""
    provenance = Provenance(describe_version(), plan.seed, "mount" if plan.through_mount else "client")
    with ExitStack() as stack:
        directory = plan.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="quorumfs-evaluate-"))
        )
        cells = sum(len(plan_cells(quorum.servers)) for quorum in plan.settings)
        bar = stack.enter_context(progress_bar(cells, "cells", estimated_seconds(plan.settings)))
        for quorum in plan.settings:
            name = f"N{quorum.servers}-Qr{quorum.read}-Qw{quorum.write}"
            yield from _measure_setting(plan, quorum, directory / name, provenance, bar)


def _measure_setting(
    plan: Plan, quorum: Quorum, directory: Path, provenance: Provenance, bar: Bar
) -> Iterator[Record]:
    bar.describe(f"N={quorum.servers} Qr={quorum.read} Qw={quorum.write}")
    cluster = LocalCluster.create(
        directory,
        servers=quorum.servers,
        read_quorum=quorum.read,
        write_quorum=quorum.write,
        rpc=plan.rpc,
        deadlines=DEADLINES,
    )
    with ExitStack() as stack:
        if plan.keep is None:
            stack.callback(forget_rings, cluster.config)
        stack.enter_context(cluster)
        cluster.start()
        access = MountAccess(cluster) if plan.through_mount else ClientAccess(cluster)
        stack.callback(access.close)
        laboratory = Laboratory(cluster, access, provenance)
        stack.callback(laboratory.close)
        bar.advance(START_SECONDS, 0)
        cells = plan_cells(quorum.servers)
        for record, cost in zip(laboratory.measure(cells), cell_costs(cells), strict=True):
            bar.advance(cost, 1)
            yield record


def cell_costs(cells: Sequence[Cell]) -> list[float]:
    """Return what each cell is estimated to take, in seconds; the first of a round bears its crashes."""
    costs = []
    crashed = 0
    for cell in cells:
        rounds = CRASH_SECONDS + RESTART_SECONDS * cell.crashed if cell.crashed != crashed else 0.0
        costs.append(CELL_SECONDS + rounds)
        crashed = cell.crashed
    return costs


def estimated_seconds(settings: Sequence[Quorum]) -> float:
    """Return what measuring all cells of these settings is estimated to take."""
    return sum(START_SECONDS + sum(cell_costs(plan_cells(quorum.servers))) for quorum in settings)
