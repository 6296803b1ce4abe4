"""The client library without a mount does what a local directory does, also while parts are restarted."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusefs.connect import connect
from fusefs.filesystem import FileSystem
from tests.conftest import ClusterFactory
from tests.twin_machine import play
from tests.twins import LibraryPlace, OsPlace, Twins
from tools.cluster import LocalCluster
from tools.health import await_writable
from wire.messages import ROOT_INODE


class LibraryRig:
    """A cluster, and one client of it for each pair of twins."""

    def __init__(self, cluster: LocalCluster, local: Path, stack: ExitStack) -> None:
        cluster.start()
        await_writable(cluster)
        self.cluster, self.local = cluster, local
        self._numbers = itertools.count(1)
        self._clients = stack.enter_context(ExitStack())
        self.filesystem = self._connect()

    def _connect(self) -> FileSystem:
        return self._clients.enter_context(connect(self.cluster.config, "twins"))

    def twins(self) -> Twins:
        name = f"twin-{next(self._numbers)}"
        (self.local / name).mkdir()
        self.filesystem.make(ROOT_INODE, name.encode(), 0o040755, 0, 0)
        return Twins(OsPlace(self.local / name), LibraryPlace(self.filesystem, name))

    def disturb(self, twins: Twins, part: str) -> None:
        if part != "reopen":
            self.cluster.kill(part)
            self.cluster.start(part)
            await_writable(self.cluster)
            return
        twins.close_all()
        self._clients.close()
        self.filesystem = self._connect()
        assert isinstance(twins.remote, LibraryPlace)
        twins.remote.filesystem = self.filesystem
        twins.compare_trees()

    def forget(self, twins: Twins) -> None:
        for slot in sorted(twins.open_slots):
            twins.close(slot)


@pytest.fixture
def rig(make_cluster: ClusterFactory, tmp_path: Path) -> Iterator[LibraryRig]:
    local = tmp_path / "local"
    local.mkdir()
    with ExitStack() as stack:
        yield LibraryRig(make_cluster(servers=3, read_quorum=2, write_quorum=2), local, stack)


def test_random_calls(rig: LibraryRig) -> None:
    play(rig, examples=12, steps=60)


def test_a_written_open_file_that_loses_its_name_has_no_links(rig: LibraryRig) -> None:
    twins = rig.twins()
    twins.open(0, "a", os.O_RDWR | os.O_CREAT)
    twins.call("unlink", "a")
    twins.write(0, 0, 1, 1000)
    twins.call("fstat", 0)
    twins.open(1, "b", os.O_RDWR | os.O_CREAT)
    twins.write(1, 0, 2, 1000)
    twins.call("fstat", 1)
    twins.call("unlink", "b")
    twins.call("fstat", 1)
    twins.open(2, "c", os.O_RDWR | os.O_CREAT)
    twins.write(2, 0, 3, 1000)
    twins.call("mkdir", "d")
    twins.open(3, "d/e", os.O_RDWR | os.O_CREAT)
    twins.call("rename", "d/e", "c", 0)
    twins.call("fstat", 2)
    twins.close_all()


def test_renames_into_a_directory_itself_and_over_one_that_is_above(rig: LibraryRig) -> None:
    twins = rig.twins()
    twins.call("mkdir", "d")
    twins.call("mkdir", "d/e")
    twins.open(0, "d/f", os.O_RDWR | os.O_CREAT)
    for flags in (0, 1, 2):
        for old, new in (("d", "d/e"), ("d", "d/new"), ("d/e", "d"), ("d/f", "d")):
            twins.call("rename", old, new, flags)
    twins.close_all()
    twins.compare_trees()
