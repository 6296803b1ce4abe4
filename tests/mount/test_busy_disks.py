"""A disk that takes its time fails nothing: what servers are asked waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_sweep.disks import FailingCluster
from tests.fault_sweep.failing_dataserver import STALL_SECONDS, STALLS, fault_file
from tests.mount.conftest import SMALL
from tools.cluster import LocalCluster

SERVERS = range(1, SMALL["servers"] + 1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster with the deadlines that users have, whose data servers' disks can stall."""
    made = LocalCluster.create(tmp_path / "cluster", **SMALL)
    with FailingCluster(made.directory, made.config) as cluster:
        yield cluster


@pytest.mark.parametrize("stall", STALLS)
def test_a_disk_that_stalls_fails_no_call(cluster: LocalCluster, mountpoint: Path, stall: str) -> None:
    cluster.start()
    cluster.mount(mountpoint)
    file = os.open(mountpoint / "file", os.O_RDWR | os.O_CREAT)
    for n in range(20):  # the disks are known to be quick
        os.pwrite(file, b"%d" % n * 100, 5000 * n)
        os.fsync(file)
    for number in SERVERS:
        fault_file(cluster.directory, number).write_text(stall)
    os.setxattr(file, "user.quorumfs.drop_caches", b"")
    begun = time.monotonic()
    assert os.pread(file, 100, 0) == b"0" * 100
    os.pwrite(file, b"after" * 20, 0)
    os.fsync(file)
    assert time.monotonic() - begun > STALL_SECONDS
    assert not any(fault_file(cluster.directory, number).exists() for number in SERVERS)
    assert os.pread(file, 100, 0) == b"after" * 20
    os.close(file)
