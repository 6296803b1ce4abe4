"""A throwaway cluster of five servers with a mount that every user may reach."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import assert_whole
from tools.cluster import LocalCluster


@contextmanager
def five_servers(write_quorum: int = 5) -> Iterator[tuple[LocalCluster, Path]]:
    """Start a new cluster with N=5, Qr=3; yield it and its mount point; end it and remove its files."""
    assert Path("/dev/fuse").exists(), "no /dev/fuse: these tests need it"
    with tempfile.TemporaryDirectory(prefix="quorumfs-programs-") as name:
        base = Path(name)
        base.chmod(0o755)
        mountpoint = base / "mnt"
        mountpoint.mkdir()
        settings = {"servers": 5, "read_quorum": 3, "write_quorum": write_quorum}
        with LocalCluster.create(base / "cluster", **settings) as cluster:
            cluster.start()
            cluster.mount(mountpoint)
            yield cluster, mountpoint
        assert_whole(base)
