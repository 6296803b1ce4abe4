"""Throwaway clusters to measure on: made in a new directory, and removed at the end whatever happens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tools import mounts
from tools.cluster import LocalCluster
from tools.health import await_writable
from tools.state_directory import forget_rings
from wire.config import ConfigError


@contextmanager
def fresh_cluster(parent: Path, **settings: Any) -> Iterator[LocalCluster]:
    """Yield a running cluster that can be written; `settings` are those of LocalCluster.create.

    Raises:
        ConfigError: `parent` is no directory.
    """
    if not parent.is_dir():
        raise ConfigError(f"{parent}: is no directory; make it with: mkdir {parent}")
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="quorumfs-bench-", dir=parent.resolve())
        directory = Path(stack.enter_context(temporary))
        cluster = LocalCluster.create(directory / "cluster", **settings)
        stack.callback(forget_rings, cluster.config)
        stack.enter_context(cluster)
        cluster.start()
        await_writable(cluster)
        yield cluster


@contextmanager
def fresh_cluster_mount(parent: Path, **settings: Any) -> Iterator[Path]:
    """Yield the mount point of a cluster of its own. Raises ConfigError."""
    with fresh_cluster(parent, **settings) as cluster, mounted(cluster) as mountpoint:
        yield mountpoint


@contextmanager
def mounted(cluster: LocalCluster) -> Iterator[Path]:
    """Yield a mount point of a cluster, in its own directory. Raises ConfigError."""
    mounts.check_fuse()
    mountpoint = cluster.directory / "mnt"
    mountpoint.mkdir()
    cluster.mount(mountpoint)
    yield mountpoint
