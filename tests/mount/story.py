"""The verbs of the story: a mounted cluster on which a test writes, breaks, restarts and expects.

Shell commands run in the mount point with ordinary tools; faults go through the command line, as people
inject them. Nothing here decides what is right; the tests do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import is_scrubbed, wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.methods import CommonMethods, DataMethods

ROOT = Path(__file__).parent.parent.parent
COMMAND_SECONDS = 60.0
HEAL_SECONDS = 10.0
PACKAGES = ("asyncio", "collections", "concurrent", "ctypes", "email", "encodings", "http", "importlib")


class Done(NamedTuple):
    """What a command did: its exit status, what it printed, how long it took."""

    status: int
    out: str
    err: str
    seconds: float


class Story:
    """One cluster and its mount."""

    def __init__(self, cluster: LocalCluster, mountpoint: Path) -> None:
        self.cluster = cluster
        self.mountpoint = mountpoint
        self.numbers = [server.number for server in cluster.config.data_servers]

    # What people do

    def shell(self, command: str, deadline_seconds: float = COMMAND_SECONDS) -> Done:
        """Run a command of bash in the mount point."""
        return _run(["bash", "-c", command], deadline_seconds, cwd=self.mountpoint)

    def start_shell(self, command: str) -> subprocess.Popen[str]:
        """Start a command of bash in the mount point, and do not wait for it."""
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.mountpoint,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def quorumfs(self, *words: str) -> Done:
        """Run the command line on this cluster."""
        environment = {"QUORUMFS_STATE": str(self.cluster.directory), "PYTHONPATH": str(ROOT)}
        return _run([sys.executable, "-m", "tools.cli", *words], COMMAND_SECONDS, **environment)

    # Faults

    def corrupt(self, path: str, servers: list[int], *options: str) -> None:
        """Corrupt a file's replicas on some servers, when no scrub is about to find them by itself."""
        wait_until(
            lambda: is_scrubbed(self.status()), HEAL_SECONDS, "the first scrub of each server has ended"
        )
        numbers = ",".join(map(str, servers))
        done = self.quorumfs("fault", "corrupt", str(self.mountpoint / path), "--servers", numbers, *options)
        assert done.status == 0, done

    def terminate(self, *servers: int) -> None:
        """Kill data servers."""
        done = self.quorumfs("fault", "terminate", *map(str, servers))
        assert done.status == 0, done

    def restart(self, *servers: int, blank: bool = False) -> None:
        """Start data servers again."""
        done = self.quorumfs("fault", "restart", *map(str, servers), *(["--blank"] if blank else []))
        assert done.status == 0, done

    # Expectations

    def expect(self, command: str, out: str = "", deadline_seconds: float = COMMAND_SECONDS) -> None:
        """Run a command that must succeed, print exactly `out`, and complain about nothing."""
        done = self.shell(command, deadline_seconds)
        assert (done.status, done.out, done.err) == (0, out, ""), f"{command}: {done}"

    def expect_failure(self, command: str, message: str, within_seconds: float) -> None:
        """Run a command that must fail with `message`, print nothing else, and do so in time."""
        done = self.shell(command)
        assert done.status != 0 and message in done.err and done.out == "", f"{command}: {done}"
        assert done.seconds < within_seconds, f"{command} took {done.seconds:.1f} s: {done}"

    def expect_all_good(self, path: str) -> None:
        """All replicas of a file must be good within seconds, without a command."""
        wait_until(
            lambda: self.verdicts(path) == {number: {"good"} for number in self.numbers},
            HEAL_SECONDS,
            f"all replicas of {path} are good",
        )

    def expect_equal_inventories(self, deadline_seconds: float) -> None:
        """All data servers must come to hold the same blocks, and some."""
        wait_until(
            lambda: len(set(self.inventories().values())) == 1 and all(self.inventories().values()),
            deadline_seconds,
            "all data servers hold the same blocks",
        )

    # Looking

    def explain(self, path: str) -> dict[str, Any]:
        """Return what `quorumfs explain --json` says of a file."""
        done = self.quorumfs("explain", "--json", str(self.mountpoint / path))
        assert done.status == 0, done
        report: dict[str, Any] = json.loads(done.out)
        return report

    def verdicts(self, path: str) -> dict[int, set[str]]:
        """Return the verdicts on a file's blocks, by server."""
        blocks = self.explain(path)["blocks"]
        return {number: {block["verdicts"][str(number)] for block in blocks} for number in self.numbers}

    def inventories(self) -> dict[int, tuple[Any, ...]]:
        """Return the blocks of every data server, by its number."""
        found = {}
        for number in self.numbers:
            client = self.client(f"data-{number}")
            try:
                found[number] = tuple(_inventory(client))
            finally:
                client.close()
        return found

    def client(self, name: str) -> BlockingClient:
        """Return a client of a server; the caller closes it."""
        return BlockingClient([self.cluster.address(name)], self.cluster.config.rpc)

    def status(self, name: str = "mediator") -> dict[str, Any]:
        """Return what a server says of itself."""
        client = self.client(name)
        try:
            return client.call(10.0, CommonMethods.status)
        finally:
            client.close()

    def quarantined(self, number: int) -> list[Path]:
        """Return the files in a data server's quarantine."""
        return [path for path in (self.data_directory(number) / "quarantine").rglob("*") if path.is_file()]

    def stored(self, number: int) -> dict[str, str]:
        """Return the digest of every segment file of a data server: it changes with any byte."""
        segments = sorted((self.data_directory(number) / "segments").iterdir())
        return {path.name: sha256(path) for path in segments}

    def data_directory(self, number: int) -> Path:
        """Return a data server's directory."""
        return self.cluster.config.data_servers[number - 1].directory


def _run(command: list[str], deadline_seconds: float, cwd: Path | None = None, **environment: str) -> Done:
    began = time.monotonic()
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline_seconds,
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def _inventory(client: BlockingClient) -> Iterator[tuple[bytes, int, bytes]]:
    after = b""
    while page := client.call(10.0, DataMethods.inventory, after, 1000):
        yield from ((record.block, record.length, record.digest) for record in page)
        after = page[-1].block


def copy_sources(target: Path) -> int:
    """Copy a real source tree, parts of Python's own library, to `target`; return how many files it has."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for package in PACKAGES:
        shutil.copytree(library / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    return sum(path.is_file() for path in target.rglob("*"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def forget_cached(path: Path) -> None:
    """Have the kernel drop the cached pages of a file (posix_fadvise), so that a read asks the servers."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
