"""A cluster with two mediators: either may die or hang, and come back, under a mount that goes on."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tools.health import ask_mediator, await_writable
from wire.config import Deadlines


def test_either_mediator_dies(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    cluster = make_cluster(**SMALL, mediators=2)
    cluster.start()
    await_writable(cluster)
    cluster.mount(mountpoint)
    (mountpoint / "old").write_bytes(b"0" * 3000)
    for number, victim in enumerate(cluster.mediator_names * 2):
        cluster.kill(victim)
        content = os.urandom(300_000)
        (mountpoint / "file").write_bytes(content)
        os.setxattr(mountpoint, "user.quorumfs.drop_caches", b"")
        assert (mountpoint / "file").read_bytes() == content
        assert (mountpoint / "old").read_bytes() == b"0" * 3000
        (mountpoint / f"name-{number}").mkdir()
        assert ask_mediator(cluster) is not None
        cluster.start(victim)
    names = {path.name for path in mountpoint.iterdir()}
    assert names == {"file", "old", *(f"name-{number}" for number in range(4))}


def test_either_mediator_hangs(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    """Stopped, it takes connections and answers nothing. No call fails."""
    deadlines = Deadlines(metadata_seconds=10.0, read_seconds=10.0, write_seconds=10.0)
    cluster = make_cluster(**SMALL, mediators=2, deadlines=deadlines)
    cluster.start()
    await_writable(cluster)
    cluster.mount(mountpoint)
    for number, victim in enumerate(cluster.mediator_names):
        cluster.pause(victim)
        content = os.urandom(300_000)
        (mountpoint / "file").write_bytes(content)
        os.setxattr(mountpoint, "user.quorumfs.drop_caches", b"")
        assert (mountpoint / "file").read_bytes() == content
        (mountpoint / f"name-{number}").mkdir()
        cluster.resume(victim)
    assert {path.name for path in mountpoint.iterdir()} == {"file", "name-0", "name-1"}
