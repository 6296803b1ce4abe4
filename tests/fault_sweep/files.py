"""One fault at a time in the files of a data server's directory.

Each cell copies a cluster of three (Qr=2, Qw=3) that was written and stopped, damages the same file on one
server, on two or on all, starts it, and reads, updates or refills.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fault_sweep.outcomes import (
    CONTENT,
    COUNTS,
    DEADLINES,
    NEW,
    OLD,
    OPERATIONS,
    QUIET,
    READ_QUORUM,
    SERVERS,
    TOLERATED,
    UPDATED,
    Cell,
    read,
    refilling,
    worst,
    write,
)
from tests.support import wait_until
from tools.access import ClientAccess
from tools.cluster import LocalCluster
from tools.processes import ClusterError
from wire.config import ConfigError

TARGETS = ("segments/*.seg", "index.sqlite", "server.json")


def flip(path: Path, _older: Path, _other: Path) -> None:
    """Flip one bit in each page that has any."""
    data = bytearray(path.read_bytes())
    for start in range(0, len(data), 4096):
        page = data[start : start + 4096]
        place = next((index for index, byte in enumerate(page) if index > 100 and byte), None)
        if place is not None:
            data[start + place] ^= 1
    path.write_bytes(data)


def zeros(path: Path, _older: Path, _other: Path) -> None:
    """Fill with zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def truncated(path: Path, _older: Path, _other: Path) -> None:
    """Cut in the middle of what is in it."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data.rstrip(b"\0")) // 2])


def emptied(path: Path, _older: Path, _other: Path) -> None:
    """Cut to nothing."""
    path.write_bytes(b"")


def swapped(path: Path, _older: Path, other: Path) -> None:
    """Put another server's file there."""
    shutil.copy(other, path)


def older(path: Path, older_file: Path, _other: Path) -> None:
    """Put back the file as it was before the last change."""
    shutil.copy(older_file, path)


def directory(path: Path, _older: Path, _other: Path) -> None:
    """Put a directory there."""
    path.unlink()
    path.mkdir()


def removed(path: Path, _older: Path, _other: Path) -> None:
    """Remove it."""
    path.unlink()


Fault = Callable[[Path, Path, Path], None]
FAULTS: dict[str, Fault] = {
    fault.__name__: fault for fault in (flip, zeros, truncated, emptied, swapped, older, directory, removed)
}


def prepare(base: Path) -> LocalCluster:
    """Make the cluster that all cells begin with; `older-K` beside it is server K before the last change."""
    cluster = LocalCluster.create(
        base / "cluster",
        servers=SERVERS,
        read_quorum=READ_QUORUM,
        write_quorum=SERVERS,
        deadlines=DEADLINES,
        **QUIET,
    )
    _write_and_stop(cluster, {**CONTENT, "changed": OLD.encode()})
    for number in range(1, SERVERS + 1):
        shutil.copytree(cluster.directory / f"data-{number}", base / f"older-{number}")
    _write_and_stop(cluster, {"changed": NEW.encode()})
    return cluster


def _write_and_stop(cluster: LocalCluster, content: dict[str, bytes]) -> None:
    cluster.start()
    try:
        write(cluster, content)
    finally:
        cluster.stop()


def cells(targets: tuple[str, ...] = TARGETS) -> Iterator[Cell]:
    """Yield all cells."""
    return itertools.starmap(Cell, itertools.product(targets, FAULTS, COUNTS, OPERATIONS))


def sweep(base: Path) -> Iterator[tuple[Cell, str]]:
    """Run all cells; yield each with its outcome."""
    prepare(base)
    return ((cell, run_cell(base, *cell)) for cell in cells())


def run_cell(base: Path, target: str, fault: str, count: int, operation: str) -> str:
    """Return the worst outcome of one cell; the base is not changed."""
    place = base / "cluster"
    saved = base / "saved"
    if not saved.exists():
        shutil.copytree(place, saved)
    shutil.rmtree(place)
    shutil.copytree(saved, place)
    for number in range(1, count + 1):
        own = place / f"data-{number}"
        for path in sorted(own.glob(target)):
            other = saved / f"data-{number % SERVERS + 1}" / path.relative_to(own)
            FAULTS[fault](path, base / f"older-{number}" / path.relative_to(own), other)
    with LocalCluster.open(place) as cluster:
        try:
            return observe(cluster, count, operation)
        finally:
            for name in cluster.server_names:
                cluster.kill(name)


def observe(cluster: LocalCluster, count: int, operation: str) -> str:
    """Start what starts; return the worst outcome of an operation on every file."""
    if operation == "refill":
        shutil.rmtree(cluster.directory / f"data-{SERVERS}")
        (cluster.directory / f"data-{SERVERS}").mkdir()
    start_what_starts(cluster)
    if operation == "refill":
        # One that cannot be filled ends too.
        wait_until(lambda: not refilling(cluster), 30, "the refills end")
    access = ClientAccess(cluster)
    try:
        expected = dict(CONTENT)
        outcomes = []
        if operation == "update":
            outcomes.append(update(access, expected))
        outcomes += [read(access, name, data) for name, data in expected.items()]
    finally:
        access.close()
    # With the write quorum of all, an update needs every server; what it leaves must be read all the same.
    reads = outcomes[1:] if operation == "update" else outcomes
    damaged = count + (operation == "refill" and count < SERVERS)
    found = worst(outcomes)
    return "lost" if "refused" in reads and damaged <= TOLERATED and found != "wrong" else found


def start_what_starts(cluster: LocalCluster) -> None:
    """Start all servers but the data servers that refuse to."""
    try:
        cluster.start()
    except (ClusterError, ConfigError):
        for name in cluster.server_names:
            try:
                cluster.start(name)
            except (ClusterError, ConfigError):
                if not name.startswith("data-"):
                    raise


def update(access: ClientAccess, expected: dict[str, bytes]) -> str:
    """Replace a file; what must be read afterwards goes to `expected`."""
    data = b"updated " * 1000
    try:
        access.write(UPDATED, data)
    except OSError:
        return "refused"
    expected[UPDATED] = data
    return "right"
