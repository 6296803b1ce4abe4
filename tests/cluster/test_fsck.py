"""The command fsck: clean, damaged, mended; on a stopped and on a running cluster."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metaserver import pages
from tests.cluster.quorum_client import QuorumClient, connected
from tests.conftest import ClusterFactory
from tests.support import run_command
from tools.cluster import LocalCluster
from wire.messages import ROOT_INODE
from wire.methods import DataMethods, NamespaceMethods

SECONDS = 15.0


def fsck(cluster: LocalCluster, *options: str) -> tuple[int, dict[str, Any], dict[str, int]]:
    """Return the exit status, the whole report, and how often each check found something."""
    done = run_command(cluster.directory, "fsck", "--json", "--state", str(cluster.directory), *options)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    found = {each["name"]: each["found"] for each in report["checks"] if each["found"]}
    return done.returncode, report, found


def damage(cluster: LocalCluster, statement: str) -> None:
    """Change the database behind the metadata server's back."""
    with closing(pages.connect(cluster.directory / "meta" / "meta.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    return make_cluster(servers=3, read_quorum=2, write_quorum=3)


def fill(client: QuorumClient) -> int:
    """Make three files; return an inode of one that is open and has no name any more."""
    client.make("a", b"1234")
    client.make("b", bytes(3 << 20))
    ino, _ = client.make("c", b"orphan")
    client.mediator.call(SECONDS, NamespaceMethods.open, client.session, ino, False)
    client.mediator.call(SECONDS, NamespaceMethods.unlink, client.ticket(), ROOT_INODE, b"c")
    return ino


def test_a_sound_cluster_is_clean_online_and_offline(cluster: LocalCluster) -> None:
    with connected(cluster) as client:
        fill(client)
        status, report, found = fsck(cluster)
        assert (status, report["online"], report["clean"], found) == (0, True, True, {})
        assert report["blocks"] == 5
        client.mediator.call(SECONDS, NamespaceMethods.close_session, client.session)
    cluster.stop()
    status, report, found = fsck(cluster)
    assert (status, report["online"], report["clean"], found) == (0, False, True, {})
    assert len(report["checks"]) >= 25
    shown = run_command(cluster.directory, "fsck", "--state", str(cluster.directory)).stdout
    assert "clean: " in shown
    assert "extent-overlap" in shown


def test_damage_is_found_mended_and_the_copy_kept(cluster: LocalCluster) -> None:
    with connected(cluster) as client:
        fill(client)
        client.mediator.call(SECONDS, NamespaceMethods.close_session, client.session)
    cluster.stop()
    damage(cluster, "UPDATE inodes SET nlink = 5 WHERE nlink = 1")
    damage(cluster, "INSERT INTO entries VALUES (1, x'7a7a', 999)")
    damage(cluster, "DELETE FROM entries WHERE name = x'61'")
    status, report, found = fsck(cluster)
    assert (status, found) == (1, {"entry-inode": 1, "file-links": 2})
    assert report["repaired"] == []
    assert fsck(cluster)[0] == 1, "looking changes nothing"
    status, report, found = fsck(cluster, "--repair")
    assert (status, found) == (0, {}), report
    assert {action["check"] for action in report["repaired"]} == {"entry-inode", "file-links"}
    assert Path(report["copy"]).exists()
    with connected(cluster) as client:
        steps = client.mediator.call(SECONDS, NamespaceMethods.resolve, ROOT_INODE, [b"lost+found"])
        page = client.mediator.call(SECONDS, NamespaceMethods.read_directory, steps[0].ino, b"", 10)
        assert [client.read(entry.attributes.ino) for entry in page.entries] == [b"1234"]


@pytest.mark.damages("overlapping extents cannot be mended")
def test_what_cannot_be_mended_is_told(cluster: LocalCluster) -> None:
    with connected(cluster) as client:
        client.make("b", bytes(3 << 20))
    cluster.stop()
    damage(cluster, "UPDATE extents SET length = length + 5, block_offset = 0 WHERE offset = 0")
    status, _, found = fsck(cluster, "--repair")
    assert status == 1
    assert found["extent-overlap"] == 1
    shown = run_command(cluster.directory, "fsck", "--repair", "--state", str(cluster.directory))
    assert shown.returncode == 1
    assert "cannot be mended without losing data" in shown.stdout


def test_a_running_cluster_tells_its_damage_and_has_its_servers_filled(cluster: LocalCluster) -> None:
    with connected(cluster) as client:
        client.make("a", b"1234")
        _, records = client.make("b", bytes(3 << 20))
        damage(cluster, "UPDATE inodes SET nlink = 5 WHERE ino = 1")
        status, report, found = fsck(cluster)
        assert (status, found) == (1, {"directory-links": 1})
        assert report["online"]
        damage(cluster, "UPDATE inodes SET nlink = 2 WHERE ino = 1")
        for _ in range(3):
            client.data[2].call(SECONDS, DataMethods.delete, [record.block for record in records])
            status, report, found = fsck(cluster)
            if found == {"block-replicas": 3}:
                break  # otherwise the first scrub has mended some meanwhile
        assert (status, found) == (1, {"block-replicas": 3})
        assert report["checks"][-2]["rows"][0]["not_on"] == [2]
        status, report, found = fsck(cluster, "--repair")
        assert (status, found) == (0, {}), report
        client.kill(3)
        status, _, found = fsck(cluster)
        assert (status, found) == (1, {"data-servers": 1})
        told = run_command(cluster.directory, "fsck", "--state", str(cluster.directory)).stdout
        assert f"quorumfs status --state {cluster.directory}" in told and "--repair" not in told
    cluster.stop("metaserver")
    # Its next change after the damage may have been refused: only it may write to the database.
    log = cluster.log_file("metaserver")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if "SQLITE_BUSY_SNAPSHOT" not in line))


@pytest.mark.damages("all replicas of a block are deleted")
def test_a_block_that_no_server_has_is_lost(cluster: LocalCluster) -> None:
    with connected(cluster) as client:
        _, records = client.make("a", b"1234")
        for data in client.data.values():
            data.call(SECONDS, DataMethods.delete, [records[0].block])
        status, report, found = fsck(cluster)
        assert (status, report["lost_paths"], found) == (1, ["/a"], {"block-lost": 1})
        told = run_command(cluster.directory, "fsck", "--state", str(cluster.directory)).stdout
        assert "  /a\n" in told and "--repair" not in told
        client.mediator.call(SECONDS, NamespaceMethods.close_session, client.session)
    cluster.stop()
    status, report, found = fsck(cluster)
    assert (status, report["lost_paths"], found) == (1, ["/a"], {"block-lost": 1})


def test_what_cannot_be_looked_at(cluster: LocalCluster, tmp_path: Path) -> None:
    done = run_command(tmp_path, "fsck", "--state", str(cluster.directory))
    assert done.returncode == 2
    assert "no database" in done.stderr and "quorumfs rebuild" in done.stderr
    cluster.start("metaserver")
    cluster.pause("metaserver")
    done = run_command(tmp_path, "fsck", "--state", str(cluster.directory))
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_data_servers_directory_in_anothers_place_is_told(cluster: LocalCluster) -> None:
    with connected(cluster) as client:
        fill(client)
        client.mediator.call(SECONDS, NamespaceMethods.close_session, client.session)
    cluster.stop()
    shutil.rmtree(cluster.directory / "data-2")
    shutil.copytree(cluster.directory / "data-1", cluster.directory / "data-2")
    status, report, found = fsck(cluster)
    assert (status, found) == (1, {"data-servers": 1})
    [check] = [check for check in report["checks"] if check["found"]]
    assert "belongs to data server 1" in check["rows"][0]["error"]


def test_servers_of_another_cluster_at_ones_addresses_are_not_looked_at(make_cluster: ClusterFactory) -> None:
    """As of two configurations written by hand with the same ports."""
    own, other = (make_cluster(servers=3, read_quorum=2, write_quorum=3) for _ in range(2))
    with connected(own) as client:
        client.make("a", b"1234")
    own.stop()
    text = own.config_file.read_text()
    other.start("metaserver", "data-2")
    own.config_file.write_text(text.replace(own.address("metaserver"), other.address("metaserver")))
    status, report, _ = fsck(own)
    assert (status, report["online"], report["blocks"]) == (0, False, 1)
    own.config_file.write_text(text.replace(own.address("data-2"), other.address("data-2")))
    own.start("metaserver", "data-1", "data-3")
    status, report, found = fsck(own)
    assert (status, report["online"], found) == (1, True, {"data-servers": 1})
    (row,) = (row for each in report["checks"] for row in each["rows"])
    assert f"is that of dataserver 2 of cluster {other.config.cluster}" in row["error"]
    own.stop()
    done = run_command(own.directory, "rebuild", "--replace", "--fewer", "--state", str(own.directory))
    assert "of the 2 that could be looked at" in done.stderr
