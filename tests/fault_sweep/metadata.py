"""The metadata database: each page in turn, and the log, damaged; and brought back afterwards.

*start*: damaged while the server is stopped; *running*: damaged under the running server; then all names and
files are asked for. A cell is the worst outcome over all pages, or over the beginning of the log and some
twenty of its frames. A server whose log was damaged is stopped then, so that it moves its log into the
database, and started and asked once more. *restore* and *rebuild*: the database is put back from the backup,
or from the copy on the data servers, and everything must be right..
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dataserver.marks import MILESTONES_NAME
from tests.fault_sweep.outcomes import (
    CONTENT,
    DEADLINES,
    NEW,
    OLD,
    READ_QUORUM,
    SERVERS,
    Cell,
    read,
    worst,
    write,
)
from tests.support import run_command, wait_until
from tools.access import ClientAccess
from tools.cluster import LocalCluster
from tools.health import ask_mediator, await_writable
from tools.processes import ClusterError
from wire.config import ConfigError

PAGE = 4096
LOG_HEADER, FRAME = 32, 24 + PAGE
NAMES = [f"file with a long name {number} {'x' * 60}" for number in range(60)]
FILES = {**CONTENT, **{name: name.encode() for name in NAMES}}
DATABASE, LOG = "meta.sqlite", "meta.sqlite-wal"
COPY_SECONDS = 30.0
FRAMES_TRIED = 20

Fault = Callable[[bytearray, int, int, bytes], None]
"""Damages bytes `start` to `end` of a file; the last argument is an older version of the file."""


def flip(data: bytearray, start: int, end: int, _older: bytes) -> None:
    """Flip one bit in the middle."""
    data[(start + end) // 2] ^= 4


def zeros(data: bytearray, start: int, end: int, _older: bytes) -> None:
    """Fill with zeros."""
    data[start:end] = bytes(end - start)


def swapped(data: bytearray, start: int, end: int, _older: bytes) -> None:
    """Put a neighbour's bytes there, and these in its place."""
    size = end - start
    other = end if end + size <= len(data) else start - size
    if other >= 0:
        data[start:end], data[other : other + size] = data[other : other + size], data[start:end]


def older(data: bytearray, start: int, end: int, before: bytes) -> None:
    """Put back what was there before the last changes."""
    data[start:end] = before[start:end]


def all_older(data: bytearray, _start: int, _end: int, before: bytes) -> None:
    """Put back the whole file as it was before the last changes."""
    data[:] = before


def truncated(data: bytearray, start: int, _end: int, _older: bytes) -> None:
    """Cut the file off here."""
    del data[start:]


def emptied(data: bytearray, _start: int, _end: int, _older: bytes) -> None:
    """Cut the whole file to nothing."""
    data.clear()


FAULTS: tuple[Fault, ...] = (flip, zeros, swapped, older, all_older, truncated, emptied)


class MetadataBench:
    """A stopped cluster, saved, and its database as it was before the last changes."""

    def __init__(self, base: Path) -> None:
        self.base = base
        made = LocalCluster.create(
            base / "cluster",
            servers=SERVERS,
            read_quorum=READ_QUORUM,
            write_quorum=SERVERS,
            deadlines=DEADLINES,
            metadata_copy_seconds=0.5,
        )
        self.place = made.directory
        with made as cluster:
            cluster.start()
            await_writable(cluster)
            write(cluster, {**FILES, "changed": OLD.encode()})
            cluster.stop()
            self._let_nobody_know_its_age(cluster)
            self.older = {DATABASE: (self.place / "meta" / DATABASE).read_bytes()}
            cluster.start()
            write(cluster, dict.fromkeys(NAMES[::2], b"old"))
            cluster.kill("metaserver")
            self.older[LOG] = (self.place / "meta" / LOG).read_bytes()
            cluster.start()
            cluster.stop()
            cluster.start()
            await_writable(cluster)
            write(cluster, {**{name: name.encode() for name in NAMES[::2]}, "changed": NEW.encode()})
            self._await_copy(cluster)
            done = run_command(base, "backup", str(base / "backup"), "--state", str(self.place))
            assert done.returncode == 0, done.stderr
            cluster.kill("metaserver")
            self.log = (self.place / "meta" / LOG).read_bytes()
            shutil.copytree(self.place / "meta", base / "killed")
            cluster.stop()
            text = cluster.config_file.read_text()
            cluster.config_file.write_text(text.replace("copy_seconds = 0.5", "copy_seconds = 0.0"))
            cluster.start("metaserver")
            cluster.stop()
        shutil.copytree(self.place / "meta", base / "stopped")

    @staticmethod
    def _let_nobody_know_its_age(cluster: LocalCluster) -> None:
        """Have no data server keep how far the metadata is: what is put back would be an older one."""
        for server in cluster.config.data_servers:
            mark = server.directory / MILESTONES_NAME
            mark.unlink(missing_ok=True)
            mark.mkdir()

    @staticmethod
    def _await_copy(cluster: LocalCluster) -> None:
        written_ns = time.time_ns()

        def is_stored() -> bool:
            status = ask_mediator(cluster)
            return status is not None and int(status["metadata_copies"]["newest_ns"]) > written_ns

        wait_until(is_stored, COPY_SECONDS, "a copy of the metadata")

    def runs(self, name: str, fault: Fault = flip) -> list[tuple[int, int]]:
        """Return what is damaged of the database, or of the log, one at a time: (start, end)."""
        if fault in (all_older, emptied):
            return [(0, 0)]
        if name == DATABASE:
            size = (self.base / "stopped" / DATABASE).stat().st_size
            return [(start, start + PAGE) for start in range(0, size, PAGE)]
        frames = [(start, start + FRAME) for start in range(LOG_HEADER, len(self.log) - FRAME + 1, FRAME)]
        return [(0, LOG_HEADER), *frames[:: -max(1, len(frames) // FRAMES_TRIED)]]

    def put(self, source: str) -> LocalCluster:
        """Put a saved state of the metadata back; return the cluster, stopped."""
        shutil.rmtree(self.place / "meta")
        shutil.copytree(self.base / source, self.place / "meta")
        return LocalCluster.open(self.place)

    def spoil(self, name: str, fault: Fault, run: tuple[int, int]) -> None:
        """Damage a part of a file, in place."""
        path = self.place / "meta" / name
        data = bytearray(path.read_bytes())
        fault(data, *run, self.older[name])
        with path.open("r+b") as file:
            file.write(data)
            file.truncate(len(data))

    def start_and_look(self, cluster: LocalCluster, spoil: Callable[[], None] = lambda: None) -> str:
        """Start what is down; damage it then; return the worst outcome of everything that is asked for."""
        try:
            cluster.start()
        except (ClusterError, ConfigError):
            return "refused"
        spoil()
        try:
            return look(cluster)
        finally:
            cluster.kill("metaserver")
            cluster.kill("mediator")

    def stopped(self, name: str, fault: Fault, run: tuple[int, int]) -> str:
        """Damage a part while the server is stopped; start it and look."""
        cluster = self.put("stopped" if name == DATABASE else "killed")
        self.spoil(name, fault, run)
        return self.start_and_look(cluster)

    def running(self, name: str, fault: Fault, run: tuple[int, int]) -> str:
        """Damage a part under the running server, and look; with the log, once more after a restart."""
        cluster = self.put("stopped" if name == DATABASE else "killed")
        if name == DATABASE:
            return self.start_and_look(cluster, lambda: self.spoil(name, fault, run))
        cluster.start()
        self.spoil(name, fault, run)
        found = look(cluster)
        cluster.stop("mediator", "metaserver")
        return worst([found, self.start_and_look(cluster)])

    def brought_back(self, command: list[str], name: str, fault: Fault) -> str:
        """Damage a part in the middle; bring the database back with a command, and look."""
        cluster = self.put("stopped" if name == DATABASE else "killed")
        runs = self.runs(name, fault)
        self.spoil(name, fault, runs[len(runs) // 2])
        cluster.stop()
        done: subprocess.CompletedProcess[str] = run_command(self.base, *command, "--state", str(self.place))
        if done.returncode:
            print(done.stderr)
            return "refused"
        return self.start_and_look(LocalCluster.open(self.place))


def look(cluster: LocalCluster) -> str:
    """Ask for all names and all files; return the worst outcome."""
    try:
        await_writable(cluster, 4.0)
        access = ClientAccess(cluster)
    except (ClusterError, ConfigError):
        return "refused"
    try:
        return worst([read(access, name, data) for name, data in FILES.items()])
    finally:
        with contextlib.suppress(OSError):
            access.close()


def sweep(base: Path) -> Iterator[tuple[Cell, str]]:
    """Run all cells; yield each with its outcome."""
    bench = MetadataBench(base)
    with LocalCluster.open(bench.place) as cluster:
        for name in (DATABASE, LOG):
            for fault in FAULTS:
                for title, attempt in (("start", bench.stopped), ("running", bench.running)):
                    found = [attempt(name, fault, run) for run in bench.runs(name, fault)]
                    yield Cell(name, fault.__name__, 0, title), worst(found)
                for command in (["restore", str(base / "backup")], ["rebuild", "--replace"]):
                    outcome = bench.brought_back(command, name, fault)
                    outcome = "lost" if outcome == "refused" else outcome
                    yield Cell(name, fault.__name__, 0, command[0]), outcome
        cluster.close()
