"""One cluster and mount for all tests of a module that break nothing, each in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import assert_whole, unexpected_lines
from tools.cluster import LocalCluster

SMALL = {"servers": 3, "read_quorum": 2, "write_quorum": 3}


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The mount point of a cluster that lives as long as the module's tests."""
    assert Path("/dev/fuse").exists(), "no /dev/fuse: these tests need it"
    base = tmp_path_factory.mktemp("shared")
    mountpoint = base / "mnt"
    mountpoint.mkdir()
    with LocalCluster.create(base / "cluster", **SMALL) as cluster:
        cluster.start()
        cluster.mount(mountpoint)
        yield mountpoint
    assert not unexpected_lines(cluster)
    assert_whole(base)


@pytest.fixture(autouse=True)
def whole_in_the_end(whole: None) -> None:
    """Every cluster of these tests must be whole when they end."""


@pytest.fixture
def here(shared_mount: Path, request: pytest.FixtureRequest) -> Path:
    """An empty directory on the mount."""
    place = shared_mount / request.node.name.replace("/", "_")
    place.mkdir()
    return place


@contextmanager
def two_mounts(base: Path) -> Iterator[tuple[Path, Path]]:
    """Two mounts of a small cluster of their own, for the tests of a module."""
    places = base / "first", base / "second"
    with LocalCluster.create(base / "cluster", **SMALL) as cluster:
        cluster.start()
        for place in places:
            place.mkdir()
            cluster.mount(place)
        yield places
    assert not unexpected_lines(cluster)
