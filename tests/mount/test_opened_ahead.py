"""A file that was opened without a call, by a mount that was alone, lives until its last close."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.methods import CommonMethods

FILES = 40


def metadata(cluster: LocalCluster) -> dict[str, Any]:
    client = BlockingClient([cluster.address("metaserver")])
    try:
        return client.call(10, CommonMethods.status)
    finally:
        client.close()


def open_untold(cluster: LocalCluster, directory: Path) -> tuple[int, str] | None:
    """Read neighbours, and leave one of them open; None if the server has been told of it."""
    os.setxattr(directory, "user.quorumfs.drop_caches", b"")  # what was written is in the kernel's pages
    for name in sorted(os.listdir(directory))[:12]:  # noqa: PTH208
        file = os.open(directory / name, os.O_RDONLY)
        if name == "11":
            break
        os.read(file, 100)
        os.close(file)
    (session,) = metadata(cluster)["sessions"]
    if session["open_files"] == 0:
        return file, name
    os.close(file)
    return None


def reads(first: Path, file: int, name: str) -> bool:
    """Read what an open file has, by vote; False while servers are away."""
    os.setxattr(first, "user.quorumfs.drop_caches", b"")
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return os.pread(file, 100, 0) == f"file {name}".encode()
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("remover", ["the same mount", "another mount"])
def test_it_lives_until_its_last_close(make_cluster: ClusterFactory, tmp_path: Path, remover: str) -> None:
    cluster = make_cluster(**SMALL, garbage_grace_seconds=0.1)
    cluster.start()
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
    cluster.mount(first)
    (first / "d").mkdir()
    for number in range(FILES):
        (first / "d" / f"{number:02d}").write_text(f"file {number:02d}")
    wait_until(lambda: metadata(cluster)["alone_seconds_left"] > 0, 10, "the mount is alone")
    file, name = wait_until(lambda: open_untold(cluster, first / "d"), 10, "a file is opened without a call")
    inodes = metadata(cluster)["counts"]["inodes"]
    if remover == "the same mount":
        (first / "d" / name).unlink()
    else:
        cluster.mount(second)
        (second / "d" / name).unlink()
    assert reads(first, file, name)
    cluster.kill("metaserver")
    cluster.start("metaserver")
    wait_until(lambda: reads(first, file, name), 20, "it is read after a restart of the metadata server")
    assert metadata(cluster)["counts"]["inodes"] == inodes
    os.close(file)
    wait_until(lambda: metadata(cluster)["counts"]["inodes"] == inodes - 1, 20, "the file is removed")
