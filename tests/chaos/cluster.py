"""The cluster under chaos: real processes, each in a network namespace, some on small disks of their own.

Data server N keeps its files on a small tmpfs, so does the metadata server: those can be filled. It decides
nothing; one thread at a time.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos.network import Network
from tools.cluster import LocalCluster
from tools.processes import Process
from wire.config import ClusterConfig, Deadlines, dumps

SERVERS, READ_QUORUM, WRITE_QUORUM = 5, 3, 4
TOLERATED = SERVERS - READ_QUORUM
PORT = 7000
SMALL_DISK = "768m"
FILLER = "filler"
DEADLINES = Deadlines(
    metadata_seconds=12.0, read_seconds=8.0, write_seconds=12.0, vote_seconds=3.0, silence_seconds=3.0
)
NAMES = ("mediator", "metaserver", *(f"data-{k}" for k in range(1, SERVERS + 1)), "mount-1", "mount-2")
SETTINGS: dict[str, Any] = {"lease_seconds": 15.0, "garbage_grace_seconds": 1.0, "commit_age_seconds": 5.0}


class NamespacedProcess(Process):
    """A process that is started in its part's network namespace."""

    def __init__(self, name: str, pid_file: Path, log_file: Path, network: Network) -> None:
        super().__init__(name, pid_file, log_file)
        self._network = network

    def _before_command(self) -> list[str]:
        return [*self._network.entering(self.name)]


class ChaosCluster(LocalCluster):
    """A local cluster whose parts have addresses of their own; see LocalCluster for the rest."""

    def __init__(self, directory: Path, config: ClusterConfig, network: Network) -> None:
        super().__init__(directory, config)
        self.network = network
        self._disks = ExitStack()

    @classmethod
    def build(cls, directory: Path, network: Network, write_quorum: int = WRITE_QUORUM) -> ChaosCluster:
        """Make the state directory of a new cluster on the network. Nothing is started."""
        made = LocalCluster.create(
            directory,
            servers=SERVERS,
            read_quorum=READ_QUORUM,
            write_quorum=write_quorum,
            deadlines=DEADLINES,
            **SETTINGS,
        )

        def listen(name: str) -> str:
            return f"{network.host(name)}:{PORT}"

        servers = [
            dataclasses.replace(server, listen=listen(f"data-{server.number}"))
            for server in made.config.data_servers
        ]
        servers[-1] = dataclasses.replace(servers[-1], directory=directory / "small-data" / "files")
        config = dataclasses.replace(
            made.config,
            mediator_listen=listen("mediator"),
            metaserver_listen=listen("metaserver"),
            metaserver_directory=directory / "small-meta" / "files",
            data_servers=tuple(servers),
        )
        (directory / "cluster.toml").write_text(dumps(config, directory))
        return cls(directory, config, network)

    def __enter__(self) -> Self:
        for place in ("small-data", "small-meta"):
            disk = self.directory / place
            disk.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(disk)]
            subprocess.run(words, check=True, timeout=10)
            self._disks.callback(subprocess.run, ["umount", "-l", str(disk)], check=True, timeout=10)
            (disk / "files").mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._disks:
            super().__exit__(kind, error, trace)

    def process(self, name: str) -> Process:
        if name not in self._processes:
            pid_file = self.directory / "run" / f"{name}.json"
            self._processes[name] = NamespacedProcess(name, pid_file, self.log_file(name), self.network)
        return self._processes[name]

    def _check_address(self, name: str) -> None:
        """The address is of a namespace that nobody else is in."""

    def kill_all(self, names: list[str]) -> None:
        """Kill these at once, in this order, and wait until they have ended."""
        self._kill_all(names)

    def data_directory(self, name: str) -> Path:
        """Return where a data server keeps its files."""
        return self._data_server(name).directory

    def wipe(self, name: str) -> None:
        """Empty the directory of a data server that is down."""
        for path in self.data_directory(name).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fill_disk(self, place: str) -> int:
        """Fill a small disk to the last page; return by how many bytes."""
        size = 0
        with (self.directory / place / FILLER).open("ab", buffering=0) as file:
            for step in (1 << 20, 4096):
                try:
                    while True:
                        size += file.write(bytes(step))
                except OSError:
                    continue
        return size

    def free_disk(self, place: str) -> None:
        """Take away what `fill_disk` put there."""
        (self.directory / place / FILLER).unlink(missing_ok=True)
