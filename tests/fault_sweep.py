"""`python -m tests.fault_sweep [--update docs/reliability.md]`: one fault at a time on a data server's disk.

Each cell copies a cluster of three (Qr=2, Qw=3) that was written and stopped, damages the same file on one
server, on two or on all, starts it, and reads, updates or refills. Outcomes: *right*; *refused* (an error);
*wrong* (other bytes, or an update that was refused and still changed the file); *lost* (refused though at
most N-Qr servers were damaged). Exit status 1 if anything was wrong or lost.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import wait_until
from tools.access import ClientAccess
from tools.cluster import LocalCluster
from tools.locate import mediator_client
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.config import ConfigError, Deadlines
from wire.errors import QuorumfsError
from wire.methods import CommonMethods

SERVERS, READ_QUORUM = 3, 2
TOLERATED = SERVERS - READ_QUORUM
OLD, NEW = "old bytes " * 100, "new bytes " * 100
CONTENT = {f"file-{n}": f"file {n} ".encode() * (10 ** (n + 1)) for n in range(4)} | {"changed": NEW.encode()}
BEGIN, END = "<!-- fault-sweep begins -->", "<!-- fault-sweep ends -->"
TARGETS = ("segments/*.seg", "index.sqlite", "server.json")
OPERATIONS = ("read", "update", "refill")
COUNTS = (1, 2, 3)


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
        deadlines=Deadlines(metadata_seconds=4.0, read_seconds=4.0, write_seconds=4.0, vote_seconds=1.5),
    )
    write(cluster, {**CONTENT, "changed": OLD.encode()})
    for number in range(1, SERVERS + 1):
        shutil.copytree(cluster.directory / f"data-{number}", base / f"older-{number}")
    write(cluster, {"changed": NEW.encode()})
    return cluster


def write(cluster: LocalCluster, content: dict[str, bytes]) -> None:
    cluster.start()
    try:
        access = ClientAccess(cluster)
        for name, data in content.items():
            access.write(name, data)
        access.close()
    finally:
        cluster.stop()


def cells(targets: tuple[str, ...] = TARGETS) -> Iterator[tuple[str, str, int, str]]:
    """Yield (target, fault, how many servers, operation)."""
    yield from itertools.product(targets, FAULTS, COUNTS, OPERATIONS)


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
        await_refills(cluster)
    access = ClientAccess(cluster)
    try:
        expected = dict(CONTENT)
        outcomes = []
        if operation == "update":
            outcomes.append(update(access, expected))
        outcomes += [read(access, name, data) for name, data in expected.items()]
    finally:
        access.close()
    worst = next(word for word in ("wrong", "refused", "right") if word in outcomes)
    # With the write quorum of all, an update needs every server; what it leaves must be read all the same.
    reads = outcomes[1:] if operation == "update" else outcomes
    damaged = count + (operation == "refill" and count < SERVERS)
    return "lost" if "refused" in reads and damaged <= TOLERATED and worst != "wrong" else worst


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
        access.write("file-2", data)
    except OSError:
        return "refused"
    expected["file-2"] = data
    return "right"


def read(access: ClientAccess, name: str, data: bytes) -> str:
    try:
        return "right" if access.read(name) == data else "wrong"
    except OSError:
        return "refused"


def await_refills(cluster: LocalCluster) -> None:
    """Wait until no server is being refilled; one that cannot be filled ends too."""
    client: BlockingClient = mediator_client(cluster)

    def done() -> bool:
        try:
            servers = client.call(2.0, CommonMethods.status)["servers"]
        except QuorumfsError:
            return False
        return all(s["state"] != "refilling" for s in servers)

    try:
        wait_until(done, 30, "the refills end")
    finally:
        client.close()


def render(outcomes: dict[tuple[str, str, int, str], str]) -> str:
    """Return the table in Markdown."""
    columns = [(operation, count) for operation in OPERATIONS for count in COUNTS]
    lines = [
        "| file | fault | " + " | ".join(f"{operation}, {count}" for operation, count in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for target, fault in dict.fromkeys((key[0], key[1]) for key in outcomes):
        found = [outcomes.get((target, fault, count, operation), "") for operation, count in columns]
        lines.append(f"| {target} | {fault} | " + " | ".join(found) + " |")
    counts = Counter(outcomes.values())
    said = ", ".join(f"{word} {counts[word]}" for word in ("right", "refused", "wrong", "lost"))
    return "\n".join([*lines, "", f"{len(outcomes)} cells: {said}."])


def main() -> int:
    """Run all cells; return the exit status."""
    parser = argparse.ArgumentParser(prog="fault_sweep", description=__doc__)
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this page")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this file")
    arguments = parser.parse_args()
    outcomes: dict[tuple[str, str, int, str], str] = {}
    with tempfile.TemporaryDirectory(prefix="quorumfs-sweep-") as name:
        base = Path(name)
        prepare(base)
        for cell in cells(tuple(arguments.target or TARGETS)):
            outcomes[cell] = run_cell(base, *cell)
            print(*cell, outcomes[cell], flush=True)
    table = render(outcomes)
    print(table)
    if arguments.update:
        page = arguments.update.read_text()
        head, rest = page.split(BEGIN)
        arguments.update.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    return int(bool({"wrong", "lost"} & set(outcomes.values())))


if __name__ == "__main__":
    sys.exit(main())
