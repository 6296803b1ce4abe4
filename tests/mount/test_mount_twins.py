"""A mount does what a local directory does, also while parts are restarted and it is mounted anew."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.twin_machine import play
from tests.twins import OsPlace, Twins
from tools.cluster import LocalCluster
from tools.health import await_writable


def restart(directory: Path, part: str) -> None:
    """End a server with SIGKILL and start it again.

    For a process without open files on the mount: a child's close would wait for the server that is down.
    """
    cluster = LocalCluster.open(directory)
    cluster.kill(part)
    cluster.start(part)


class MountRig:
    """A cluster with one mount, and directories on it."""

    def __init__(
        self, cluster: LocalCluster, mountpoint: Path, local: Path, helper: ProcessPoolExecutor
    ) -> None:
        self.helper = helper
        cluster.start()
        await_writable(cluster)
        self.cluster, self.mountpoint, self.local = cluster, mountpoint, local
        self.mount = cluster.mount(mountpoint)
        self._numbers = itertools.count(1)

    def twins(self) -> Twins:
        name = f"twin-{next(self._numbers)}"
        for base in (self.local, self.mountpoint):
            (base / name).mkdir()
        return Twins(OsPlace(self.local / name), OsPlace(self.mountpoint / name))

    def disturb(self, twins: Twins, part: str) -> None:
        if part != "reopen":
            self.helper.submit(restart, self.cluster.directory, part).result(60)
            await_writable(self.cluster)
            return
        twins.close_all()
        self.cluster.unmount(self.mount)
        self.mount = self.cluster.mount(self.mountpoint)
        twins.compare_trees()

    def forget(self, twins: Twins) -> None:
        for slot in sorted(twins.open_slots):
            twins.close(slot)


@pytest.fixture
def rig(make_cluster: ClusterFactory, mountpoint: Path, tmp_path: Path) -> Iterator[MountRig]:
    local = tmp_path / "local"
    local.mkdir()
    with ProcessPoolExecutor(1, get_context("spawn")) as helper:
        helper.submit(os.getpid).result(60)
        made = make_cluster(servers=3, read_quorum=2, write_quorum=2)
        yield MountRig(made, mountpoint, local, helper)


def test_random_calls(rig: MountRig) -> None:
    play(rig, examples=12, steps=60)
