"""A supervised mount is there again after its process was killed, and ends when it is unmounted."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import wait_until
from tools.cluster import LocalCluster
from tools.health import assess


def child_of(parent: int) -> int | None:
    """Return the process that a supervisor has started, if there is one now."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(children[0]) if children else None


def reads(file: Path) -> bool:
    try:
        return file.read_bytes() == b"content"
    except OSError:
        return False


def test_a_mount_that_dies_is_mounted_again(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    cluster = make_cluster(**SMALL)
    cluster.start()
    name = cluster.mount(mountpoint, "--supervise")
    (mountpoint / "a").write_bytes(b"content")
    record = cluster.process(name).record()
    assert record is not None
    held = os.open(mountpoint / "a", os.O_RDONLY)  # in use, and yet taken away
    for _ in range(2):
        child = child_of(record.pid)
        assert child is not None
        os.kill(child, signal.SIGKILL)
        wait_until(lambda gone=child: child_of(record.pid) not in (None, gone), 10, "another has begun")
        wait_until(lambda: reads(mountpoint / "a"), 10, "the mount is there again")
    with suppress(OSError):  # of the mount that died
        os.close(held)
    cluster.unmount(name)
    assert cluster.state(name) == "down"
    assert not os.path.ismount(mountpoint)


def letter(pid: int) -> str:
    """Return the state of a process as proc(5) has it, "X" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    cluster = make_cluster(**SMALL)
    cluster.start()
    return cluster


def supervised(cluster: LocalCluster, mountpoint: Path) -> tuple[str, int, int]:
    """Mount; return the mount's name, its parent and the process that serves it."""
    name = cluster.mount(mountpoint, "--supervise")
    record = cluster.process(name).record()
    assert record is not None
    child = child_of(record.pid)
    assert child is not None
    return name, record.pid, child


def test_a_mount_whose_parent_alone_died_runs_until_it_is_unmounted(
    cluster: LocalCluster, mountpoint: Path
) -> None:
    name, parent, child = supervised(cluster, mountpoint)
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: letter(parent) in "ZX", 10, "the parent has ended")
    (mountpoint / "a").write_bytes(b"content")
    again = LocalCluster.open(cluster.directory)  # as the next command does
    status = again.status()
    assert [(p.state, p.pid) for p in status if p.name == name] == [("running", child)]
    assert not any("has ended" in line for line in assess(cluster.config.quorum, status, None).advice)
    again.unmount(name)
    # It has nothing left to do, but the kernel may still be taking it down.
    wait_until(lambda: letter(child) in "ZX", 10, "what was written is committed")
    assert again.state(name) == "down"
    assert not os.path.ismount(mountpoint)


def test_faults_of_a_supervised_mount_strike_what_serves_it(cluster: LocalCluster, mountpoint: Path) -> None:
    name, parent, child = supervised(cluster, mountpoint)
    cluster.pause(name)
    wait_until(lambda: letter(parent) + letter(child) == "TT", 10, "both are paused")
    cluster.resume(name)
    wait_until(lambda: "T" not in letter(parent) + letter(child), 10, "both go on")
    cluster.kill(name)
    wait_until(lambda: all(letter(pid) in "ZX" for pid in (parent, child)), 10, "both have ended")
    assert cluster.state(name) == "down"
    with pytest.raises(OSError, match="connect"):  # "not connected", or at first "connection abort"
        next(mountpoint.iterdir())
