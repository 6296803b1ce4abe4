"""Rings that are gone, or are another directory's, through a real mount: no acknowledged block is lost."""

from __future__ import annotations

import shutil
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from dataserver import offline
from tests.mount.test_given_blocks import (
    DATA_SERVERS,
    assert_whole,
    cluster,
    content,
    make,
    place,
    waiting,
)
from tests.support import wait_until
from tools.cluster import LocalCluster
from tools.health import await_writable
from wire.ring_file import own_files
from wire.ring_head import BLOCKS, SHARED_MEMORY, prefix

__all__ = ["cluster", "place"]


def forget(directory: Path) -> None:
    for path in own_files(SHARED_MEMORY, prefix(directory, BLOCKS)):
        path.unlink()


def remove_rings(cluster: LocalCluster) -> None:
    """Do as a login manager does with the shared memory of a user who logs out, or an administrator."""
    for server in cluster.config.data_servers:
        forget(server.directory)


def test_servers_that_are_killed_after_their_rings_were_removed_lose_nothing_later(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    make(place, 0, 5)
    wait_until(lambda: not waiting(cluster), 10, "all is taken in")
    remove_rings(cluster)
    for name in DATA_SERVERS:
        cluster.kill(name)
    cluster.start(*DATA_SERVERS)
    await_writable(cluster)
    make(place, 5)
    again = tmp_path / "again"
    again.mkdir()
    cluster.mount(again)
    assert_whole(again / "d")


def test_servers_that_are_killed_after_their_rings_were_removed_lose_nothing_before(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    make(place, 0, 10)
    remove_rings(cluster)
    for name in DATA_SERVERS:
        cluster.pause(name)
    closed: list[int] = []

    def write() -> None:
        for number in range(10, 20):
            with suppress(OSError):
                make(place, number, number + 1)
                closed.append(number)

    maker = threading.Thread(target=write)
    maker.start()
    maker.join(1.0)
    acknowledged = list(closed)
    for name in DATA_SERVERS:
        cluster.kill(name)
    maker.join()
    cluster.start(*DATA_SERVERS)
    await_writable(cluster)
    again = tmp_path / "again"
    again.mkdir()
    cluster.mount(again)
    for number in acknowledged:
        assert (again / "d" / f"f{number}").read_text() == content(number)


def test_a_killed_server_whose_disk_is_replaced_has_all_that_is_put_later(
    cluster: LocalCluster, place: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make(place, 0, 5)
    wait_until(lambda: not waiting(cluster), 10, "all is taken in")
    (server,) = (s for s in cluster.config.data_servers if s.number == 2)
    cluster.kill("data-2")
    server.directory.rename(tmp_path / "old disk")
    request.addfinalizer(partial(forget, tmp_path / "old disk"))
    shutil.copytree(tmp_path / "old disk", server.directory)
    cluster.start("data-2")
    await_writable(cluster)
    make(place, 5)
    for name in DATA_SERVERS:
        cluster.stop(name)
    first, second = (
        {replica.block for replica in offline.read(s.directory, verify=True).replicas}
        for s in cluster.config.data_servers[:2]
    )
    assert first - second == set()
