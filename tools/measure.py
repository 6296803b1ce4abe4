"""One setting, measured: a running cluster, its files, the faults, and what really came of each cell.

Every cell has files of its own, written through one mount and read through a second one that has
never seen them, so that a read cannot be answered from a cache; the mediator's counters must confirm
it. Faults are injected right before the operation, since a read repairs what it reveals. Cells with
the same crashes share them. It judges nothing (records does) and draws nothing. One thread.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol

from mediator.vote import predict_read, predict_write
from tools.cluster import LocalCluster
from tools.processes import ClusterError
from tools.records import Cell, Outcome, Record, classify_read, classify_write
from wire.blocking import BlockingClient
from wire.methods import CommonMethods, LabMethods, MediatorMethods
from wire.quorum import Quorum

CALL_SECONDS = 10.0
SETTLE_SECONDS = 30.0
"""Servers must be seen as up or down, and refilled, within; a file must be on all of them within."""
LOOK_SECONDS = 0.03
SHORTEST_FILE_BYTES, LONGEST_FILE_BYTES = 16, 200_000
"""Several pieces, so that a vote is over a list of digests; short, so that a cell is quick."""
KINDS = ("flip", "torn", "zeros", "swap")


class Access(Protocol):
    """A way to the files: through mounts, or through the client library. Errors are OSErrors."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a file's content, and close it: all of it is committed afterwards."""

    def read(self, name: str) -> bytes:
        """Return a file's whole content, over another path than it was written, without a cache."""

    def inode(self, name: str) -> int:
        """Return a file's inode number."""


@dataclass(frozen=True)
class Provenance:
    """Where records come from: what is the same in all of one run."""

    version: str
    seed: int
    access: str


@dataclass
class Trial:
    """One cell under measurement: its file, what was committed to it, and what happened so far."""

    cell: Cell
    name: str
    committed: list[bytes]
    new: bytes
    ino: int
    faults: list[str] = field(default_factory=list)
    corrupt_servers: frozenset[int] = frozenset()
    blocks: list[tuple[str, str]] = field(default_factory=list)
    error: OSError | None = None
    content: bytes | None = None
    duration_seconds: float = 0.0
    evidence: list[str] = field(default_factory=list)


def predict(quorum: Quorum, cell: Cell) -> Outcome:
    """Return what the model (the pure vote function) says of a cell."""
    model = predict_read if cell.operation == "read" else predict_write
    return Outcome(model(quorum, crashed=cell.crashed, corrupt=cell.corrupt))


class Laboratory:
    """Measures cells on one running cluster, whose servers all were started with --lab."""

    def __init__(self, cluster: LocalCluster, access: Access, provenance: Provenance) -> None:
        quorum = cluster.config.quorum
        self._cluster = cluster
        self._access = access
        self._provenance = provenance
        self._quorum = quorum
        self._random = random.Random(f"{provenance.seed}/{quorum.servers}/{quorum.read}/{quorum.write}")
        self._numbers = [server.number for server in cluster.config.data_servers]
        self._mediator = BlockingClient([cluster.address("mediator")], cluster.config.rpc)
        self._servers = {
            number: BlockingClient([cluster.address(f"data-{number}")], cluster.config.rpc)
            for number in self._numbers
        }
        self._made = 0

    def close(self) -> None:
        """Close all connections."""
        for client in (self._mediator, *self._servers.values()):
            client.close()

    def measure(self, cells: Iterable[Cell]) -> Iterator[Record]:
        """Measure cells (those with the same crashes together) and yield a record of each.

        Raises:
            ClusterError: the cluster did not behave so that a cell could be measured at all.
        """
        self._await_up(set(self._numbers))
        for crashed, group in groupby(cells, key=lambda cell: cell.crashed):
            yield from self._measure_group(crashed, list(group))

    def _measure_group(self, crashed: int, cells: Sequence[Cell]) -> Iterator[Record]:
        trials = [self._prepare(cell) for cell in cells]
        for trial in trials:
            self._await_held(trial)
        down = sorted(self._random.sample(self._numbers, crashed))
        for number in down:
            self._cluster.kill(f"data-{number}")
        up = set(self._numbers) - set(down)
        self._await_up(up)
        for trial in trials:
            trial.faults += [f"data server {number} killed" for number in down]
            self._corrupt(trial, sorted(up))
            self._operate(trial)
        if down:
            self._cluster.start(*(f"data-{number}" for number in down))
            self._await_up(set(self._numbers))
        for trial in trials:
            yield self._record(trial)

    def _prepare(self, cell: Cell) -> Trial:
        """Commit two contents, so that stale bytes can be told from wrong ones, to all N servers."""
        self._made += 1
        name = f"{self._made:04d}-{cell.operation}"
        first, second, new = (
            self._random.randbytes(self._random.randrange(SHORTEST_FILE_BYTES, LONGEST_FILE_BYTES))
            for _ in range(3)
        )
        self._await(lambda: self._commit(name, first), "files could not be written without any fault")
        self._commit(name, second)
        return Trial(cell, name, [first, second], new, self._access.inode(name))

    def _commit(self, name: str, content: bytes) -> bool:
        """Write a file while nothing is broken; False if the client has not heard yet that all are up."""
        try:
            self._access.write(name, content)
        except OSError as error:
            if error.errno == errno.EROFS:
                return False
            raise ClusterError(f"{name} could not be written without any fault: {error}") from None
        return True

    def _corrupt(self, trial: Trial, up: Sequence[int]) -> None:
        """Damage every block of the file on as many servers as the cell says."""
        chosen = sorted(self._random.sample(list(up), trial.cell.corrupt))
        trial.corrupt_servers = frozenset(chosen)
        for server in chosen:
            colluding = trial.cell.corruption == "colluding"
            kind = "lie" if colluding else self._random.choice(KINDS)
            for block, _ in self._blocks(trial.ino):
                self._servers[server].call(CALL_SECONDS, LabMethods.corrupt, block, kind)
            trial.faults.append(f"replica on data server {server} corrupted ({kind})")
        trial.blocks = self._blocks(trial.ino)

    def _operate(self, trial: Trial) -> None:
        """Carry out the cell's operation, and note what came of it."""
        votes = self._votes()
        began = time.perf_counter()
        try:
            if trial.cell.operation == "read":
                trial.content = self._access.read(trial.name)
            else:
                self._access.write(trial.name, trial.new)
        except OSError as error:
            trial.error = error
        trial.duration_seconds = time.perf_counter() - began
        if trial.error is not None:
            trial.evidence.append(f"{_error_name(trial.error)} after {trial.duration_seconds:.2f} s")
        elif trial.cell.operation == "read":
            trial.evidence.append(_difference(trial.content, trial.committed))
        if trial.cell.operation == "read" and self._votes() == votes:
            raise ClusterError(f"{trial.cell}: the read was answered without a vote; it measured a cache")

    def _record(self, trial: Trial) -> Record:
        quorum, cell = self._quorum, trial.cell
        if cell.operation == "read":
            outcome = classify_read(trial.content, trial.committed)
        else:
            outcome = self._judge_write(trial)
        return Record(
            when=datetime.now(UTC).isoformat(timespec="milliseconds"),
            version=self._provenance.version,
            seed=self._provenance.seed,
            access=self._provenance.access,
            rpc=self._cluster.config.rpc,
            servers=quorum.servers,
            read_quorum=quorum.read,
            write_quorum=quorum.write,
            operation=cell.operation,
            crashed=cell.crashed,
            corrupt=cell.corrupt,
            corruption=cell.corruption,
            faults=tuple(trial.faults),
            expected=predict(quorum, cell),
            outcome=outcome,
            evidence="; ".join(trial.evidence),
            duration_seconds=round(trial.duration_seconds, 4),
        )

    def _judge_write(self, trial: Trial) -> Outcome:
        """Read the file, now that all servers are up again."""
        untouched = self._untouched(trial)
        try:
            afterwards = self._access.read(trial.name)
            trial.evidence.append("afterwards " + _difference(afterwards, [*trial.committed, trial.new]))
        except OSError as error:
            afterwards = None
            trial.evidence.append(f"afterwards {_error_name(error)}")
        return classify_write(trial.error is None, trial.new, trial.committed, afterwards, untouched)

    def _untouched(self, trial: Trial) -> bool:
        """Tell whether the file has its blocks of before, bad on no other server than was corrupted."""
        report = self._explain(trial.ino)
        bad = {
            int(number)
            for block in report["blocks"]
            for number, verdict in block["verdicts"].items()
            if verdict != "good"
        }
        return _block_names(report) == trial.blocks and bad <= trial.corrupt_servers

    def _blocks(self, ino: int) -> list[tuple[str, str]]:
        return _block_names(self._explain(ino))

    def _explain(self, ino: int) -> dict[str, Any]:
        return self._mediator.call(CALL_SECONDS, MediatorMethods.explain, ino)

    def _votes(self) -> int:
        status = self._mediator.call(CALL_SECONDS, CommonMethods.status)
        return int(status["votes"])

    def _await_held(self, trial: Trial) -> None:
        """Wait until all N servers hold the file: an acknowledged write may still be on its way to some."""
        self._await(
            lambda: all(
                verdict == "good"
                for block in self._explain(trial.ino)["blocks"]
                for verdict in block["verdicts"].values()
            ),
            f"not all data servers held {trial.name}",
        )

    def _await_up(self, wanted: set[int]) -> None:
        """Wait until the mediator sees exactly these data servers as up, each of them refilled."""
        self._await(
            lambda: _settled(self._mediator.call(CALL_SECONDS, CommonMethods.status), wanted),
            f"the mediator did not see data servers {sorted(wanted)} as up and refilled",
        )

    def _await(self, condition: Callable[[], bool], failure: str) -> None:
        end = time.monotonic() + SETTLE_SECONDS
        while not condition():
            if time.monotonic() > end:
                raise ClusterError(f"{failure} within {SETTLE_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)


def _block_names(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the ids and witnesses of a file's blocks, each block once."""
    return list(dict.fromkeys((block["block"], block["digest"]) for block in report["blocks"]))


def _settled(status: dict[str, Any], wanted: set[int]) -> bool:
    """Tell from a mediator's status whether exactly these data servers are up and none lacks anything."""
    states = {server["number"]: server["state"] for server in status["servers"]}
    return all(state == ("up" if number in wanted else "down") for number, state in states.items())


def _error_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def _difference(content: bytes | None, known: Sequence[bytes]) -> str:
    """Say in words what was read: which of the known contents, or where it first differs from the last."""
    if content is None:
        return "nothing"
    if content in known:
        return f"{len(content)} bytes of version {known.index(content) + 1}"
    last = known[-1]
    same = next((at for at, pair in enumerate(zip(content, last, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(content), len(last)) if same is None else same
    return f"{len(content)} bytes that are no version; other than version {len(known)} from byte {place} on"
