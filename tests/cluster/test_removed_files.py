"""The database or its log removed under a real metadata server: it is noticed, told, and nothing is lost."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.errors import InternalError
from wire.messages import Ticket
from wire.methods import CommonMethods, NamespaceMethods

DEADLINE = 10.0
FILE = 0o100644


def make(client: BlockingClient, name: bytes) -> None:
    session = client.call(DEADLINE, NamespaceMethods.open_session, "test").session
    client.call(DEADLINE, NamespaceMethods.create, Ticket(session, 0, 1), 1, name, FILE, 0, 0, 0, b"", False)


def until_told(client: BlockingClient, file: Path) -> str:
    """Wait until the server says that a file is not in its place; no change is taken from then on."""

    def displaced() -> str:
        return str(client.call(DEADLINE, CommonMethods.status)["displaced"])

    told = wait_until(displaced, DEADLINE, "it is told")
    assert str(file) in told
    with pytest.raises(InternalError, match=re.escape(str(file))):
        make(client, b"too late")
    return told


def has(cluster: LocalCluster, name: bytes) -> bool:
    with closing(BlockingClient([cluster.address("metaserver")])) as client:
        return bool(client.call(DEADLINE, NamespaceMethods.resolve, 1, [name]))


def end_with_one_line(cluster: LocalCluster) -> None:
    """See that the log told of it once; that line is as it should be."""
    cluster.stop("metaserver")
    log = cluster.log_file("metaserver")
    told = log.read_text()
    assert told.count("no more changes") == 1
    assert "Traceback" not in told
    log.unlink()


@pytest.mark.damages("a file of the database is removed")
def test_a_log_that_is_removed_takes_nothing_along(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    log = cluster.directory / "meta" / "meta.sqlite-wal"
    database = log.with_name("meta.sqlite")
    with closing(BlockingClient([cluster.address("metaserver")])) as client:
        make(client, b"before")
        before_ns = database.stat().st_mtime_ns
        log.unlink()
        until_told(client, log)
        wait_until(lambda: database.stat().st_mtime_ns > before_ns, DEADLINE, "what the log had is moved")
    cluster.kill("metaserver")
    cluster.start("metaserver")
    assert has(cluster, b"before")
    end_with_one_line(cluster)


@pytest.mark.damages("a file of the database is removed")
def test_a_database_that_is_removed_can_be_saved_as_it_is_told(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    database = cluster.directory / "meta" / "meta.sqlite"
    with closing(BlockingClient([cluster.address("metaserver")])) as client:
        make(client, b"before")
        database.unlink()
        told = until_told(client, database)
    found = re.search(r"/proc/\d+/fd", told)
    assert found is not None
    gone = [link for link in Path(found[0]).iterdir() if str(link.readlink()) == f"{database} (deleted)"]
    saved = database.with_name("saved")
    shutil.copy(gone[0], saved)
    cluster.stop("metaserver")
    saved.rename(database)
    cluster.start("metaserver")
    assert has(cluster, b"before")
    end_with_one_line(cluster)


@pytest.mark.damages("all files are removed")
def test_a_directory_that_is_removed_is_told(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, read_quorum=1, write_quorum=1)
    cluster.start("metaserver")
    directory = cluster.directory / "meta"
    with closing(BlockingClient([cluster.address("metaserver")])) as client:
        make(client, b"before")
        shutil.rmtree(directory)
        until_told(client, directory / "meta.sqlite")
    assert has(cluster, b"before")
    end_with_one_line(cluster)
