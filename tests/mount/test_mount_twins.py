"""A mount does what a local directory does, also while parts are restarted and it is mounted anew."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.twin_machine import play
from tests.twins import OsPlace, Twins
from tools.cluster import LocalCluster
from tools.health import await_writable


class MountRig:
    """A cluster with one mount, and directories on it."""

    def __init__(self, cluster: LocalCluster, mountpoint: Path, local: Path) -> None:
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
            self.cluster.kill(part)
            self.cluster.start(part)
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
    yield MountRig(make_cluster(servers=3, read_quorum=2, write_quorum=2), mountpoint, local)


def test_random_calls(rig: MountRig) -> None:
    play(rig, examples=12, steps=60)
