"""An older meta/ directory put back by hand while a mount lives on: nothing newer is lost or mixed up."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.quorum_client import QuorumClient, connected
from tests.cluster.test_backup import SECONDS, compare_inventories, content, held, run, stored_copies
from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import run_command, wait_until
from tools.cluster import LocalCluster
from wire.errors import SessionUnknown
from wire.methods import BookkeepingMethods, CommonMethods


@pytest.fixture
def cluster(make_cluster: ClusterFactory, mountpoint: Path) -> LocalCluster:
    """A small cluster, up and mounted."""
    made = make_cluster(**SMALL)
    made.start()
    made.mount(mountpoint)
    return made


def milestone(client: QuorumClient) -> int:
    """Return the milestone that all data servers have kept, 0 while they have not."""
    said: dict[str, Any] = client.status()["milestone"]
    return int(said["number"]) if said["kept"] == len(client.data) else 0


def metadata(client: QuorumClient) -> dict[str, Any]:
    return client.meta.call(SECONDS, CommonMethods.status)


def test_an_older_metadata_directory_put_back_by_hand_is_noticed(
    cluster: LocalCluster, mountpoint: Path, tmp_path: Path
) -> None:
    directory, copy = cluster.config.metaserver_directory, tmp_path / "copied-meta"
    (mountpoint / "first").write_bytes(b"1234")
    with connected(cluster) as client:
        _, kept = client.make("kept", b"5678")
        cluster.stop("metaserver")
        shutil.copytree(directory, copy)
        cluster.start("metaserver")
        client.session = client.begin_session()
        _, newer = client.make("newer", b"9")
        (mountpoint / "newer-too").write_bytes(b"10")
        inode = (mountpoint / "newer-too").stat().st_ino
        before = milestone(client)
        wait_until(lambda: milestone(client) > before, 30, "a milestone with these files")
        living = {each["session"] for each in metadata(client)["sessions"]}

        cluster.stop("metaserver")
        shutil.rmtree(directory)
        shutil.copytree(copy, directory)
        cluster.start("metaserver")
        wait_until(lambda: metadata(client)["found_older_ns"], 30, "found out")
        for session in living:
            with pytest.raises(SessionUnknown):
                client.meta.call(SECONDS, BookkeepingMethods.renew, session)
        wait_until(lambda: (mountpoint / "first").read_bytes() == b"1234", 30, "the mount goes on")
        assert not (mountpoint / "newer-too").exists()
        (mountpoint / "after").write_bytes(b"11")
        assert (mountpoint / "after").stat().st_ino > inode
        client.session = client.begin_session()
        assert client.session > max(living)
        _, after = client.make("after-too", b"12")
        compare_inventories(client)
        assert [held(client, each[0]) for each in (kept, newer, after)] == [3, 3, 3]
        assert run(cluster, "fsck")["clean"]
        said = run_command(cluster.directory, "status", "--state", str(cluster.directory))
        assert said.returncode == 1
        assert "an older one" in said.stdout
        assert "restore --release" in said.stdout

    cluster.stop()
    assert run(cluster, "restore", "--release")["released"]
    with connected(cluster) as client:
        wait_until(lambda: compare_inventories(client) or not held(client, newer[0]), 30, "deleted")
        assert held(client, after[0]) == 3
        assert not metadata(client)["found_older_ns"]


def test_a_newer_copy_on_the_data_servers_outlives_an_older_database(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(**SMALL, metadata_copy_seconds=0.5)
    directory, copy = cluster.config.metaserver_directory, tmp_path / "copied-meta"
    with connected(cluster) as client:
        client.make("first", b"1234")
        cluster.stop("metaserver")
        shutil.copytree(directory, copy)
        cluster.start("metaserver")
        client.session = client.begin_session()
        client.make("newer", b"5678")
        written_ns, before = time.time_ns(), milestone(client)
        wait_until(lambda: stored_copies(client) > written_ns, 30, "a copy with this file")
        wait_until(lambda: milestone(client) > before, 30, "a milestone with this file")
        cluster.stop("metaserver")
        shutil.rmtree(directory)
        shutil.copytree(copy, directory)
        cluster.start("metaserver")
        wait_until(lambda: metadata(client)["found_older_ns"], 30, "found out")
        client.session = client.begin_session()
        client.make("later", b"9")
        wait_until(
            lambda: "older one" in client.status()["metadata_copies"]["error"], 30, "no copy is stored"
        )
    cluster.stop()
    run(cluster, "rebuild", "--replace")
    with connected(cluster) as client:
        assert [content(client, name) for name in ("first", "newer", "later")] == [b"1234", b"5678", None]
        assert not metadata(client)["found_older_ns"]
