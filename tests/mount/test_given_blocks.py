"""Small blocks given to data servers without a call, through a real mount: theirs, whoever is killed."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dataserver import offline
from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.kills import judge_files, kill_at_random
from tests.support import run_command, wait_until
from tools.cluster import LocalCluster
from tools.health import await_writable
from wire.block_ring import RECORD_BYTES, record_offset, unpack_record
from wire.ring_head import BLOCKS, HEAD_READ_BYTES, SHARED_MEMORY, Head, prefix, unpack_head

FILES = 60
DATA_SERVERS = ("data-1", "data-2", "data-3")


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    made = make_cluster(**SMALL)
    made.start()
    return made


@pytest.fixture
def place(cluster: LocalCluster, mountpoint: Path) -> Path:
    """A directory on a mount, some time after small files were made there: servers have rings."""
    cluster.mount(mountpoint)
    return with_rings(cluster, mountpoint)


def with_rings(cluster: LocalCluster, mountpoint: Path) -> Path:
    warm, directory = mountpoint / "warm", mountpoint / "d"
    warm.mkdir(exist_ok=True)
    wait_until(lambda: _are_given(cluster, warm), 30, "all data servers are given blocks")
    directory.mkdir(exist_ok=True)
    return directory


def _are_given(cluster: LocalCluster, directory: Path) -> bool:
    """Make files; tell whether all data servers were given some without calls."""
    before = dict(rings_of(cluster))
    make(directory)
    used = [path for path, head in rings_of(cluster) if path not in before or before[path].taken < head.taken]
    return len(used) == len(DATA_SERVERS)


def content(number: int) -> str:
    return f"content of {number} " * (number + 1)


def make(directory: Path, first: int = 0, last: int = FILES) -> bool:
    for number in range(first, last):
        (directory / f"f{number}").write_text(content(number))
    return True


def assert_whole(directory: Path, last: int = FILES) -> None:
    assert [(directory / f"f{number}").read_text() for number in range(last)] == [
        content(number) for number in range(last)
    ]


def rings_of(cluster: LocalCluster) -> list[tuple[Path, Head]]:
    found = []
    for server in cluster.config.data_servers:
        for path in SHARED_MEMORY.glob(f"{prefix(server.directory, BLOCKS)}*"):
            head = unpack_head(path.read_bytes()[:HEAD_READ_BYTES])
            if head is not None and head.room_until:
                found.append((path, head))
    return found


def taken(cluster: LocalCluster) -> int:
    """Return how many blocks all servers have taken in, of those that were given."""
    return sum(head.taken for _, head in rings_of(cluster))


def waiting(cluster: LocalCluster) -> int:
    """Return in how many rings something waits to be taken in."""
    count = 0
    for path, head in rings_of(cluster):
        ring, number = path.read_bytes(), head.taken + 1
        at = record_offset(number)
        count += unpack_record(ring[at : at + RECORD_BYTES], number, head.term) is not None
    return count


def test_most_blocks_of_a_run_are_given(cluster: LocalCluster, place: Path) -> None:
    for _ in range(5):  # on a busy machine one may be far behind the one before, or a server behind
        before = taken(cluster)
        make(place)
        wait_until(lambda: not waiting(cluster), 10, "all is taken in")
        if taken(cluster) - before >= 3 * (FILES - 5):
            break
    else:
        raise AssertionError("puts take calls")
    assert_whole(place)


def made_beside(cluster: LocalCluster, directory: Path) -> bool:
    """Make files while all data servers are stopped; return False if one of them waited for these."""
    maker = threading.Thread(target=make, args=(directory, 10, 20))
    make(directory, 0, 10)
    for name in DATA_SERVERS:
        cluster.pause(name)
    maker.start()
    maker.join(1.0)
    if maker.is_alive():
        for name in DATA_SERVERS:
            cluster.resume(name)
        maker.join()
        return False
    return waiting(cluster) == 3


def make_beside(cluster: LocalCluster, directory: Path) -> None:
    for _ in range(10):  # on a busy machine it takes longer than a server may be behind
        if made_beside(cluster, directory):
            return
        for name in DATA_SERVERS:
            cluster.resume(name)
    raise AssertionError("puts wait for the data servers")


def test_all_that_are_killed_at_once_lose_none(
    cluster: LocalCluster, place: Path, mountpoint: Path, tmp_path: Path
) -> None:
    make_beside(cluster, place)
    for name in (*cluster.mount_names(), "mediator", "metaserver", *DATA_SERVERS):
        cluster.kill(name)
    look = ("replica", "verify", str(cluster.config.data_servers[0].directory))
    assert re.search(r"^\d+ more lie in shared memory", run_command(tmp_path, *look).stdout, re.MULTILINE)
    cluster.start(*DATA_SERVERS)
    for name in DATA_SERVERS:
        cluster.stop(name)
    blocks = [
        {(replica.block, replica.verdict) for replica in offline.read(s.directory, verify=True).replicas}
        for s in cluster.config.data_servers
    ]
    assert "shared memory" not in run_command(tmp_path, *look).stdout
    assert blocks[0] == blocks[1] == blocks[2] and {verdict for _, verdict in blocks[0]} == {"good"}
    assert not rings_of(cluster)
    cluster.clear_dead_mounts()
    cluster.start()
    await_writable(cluster)
    cluster.mount(mountpoint)
    assert_whole(place, last=20)


def test_data_servers_that_were_stopped_take_in_what_they_were_given(
    cluster: LocalCluster, place: Path
) -> None:
    make_beside(cluster, place)
    for name in DATA_SERVERS:
        cluster.resume(name)
    assert_whole(place, last=20)
    wait_until(lambda: not waiting(cluster), 10, "all is taken in")


def test_what_a_killed_server_was_given_is_there_when_it_is_back(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    make(place)
    cluster.kill("data-2")
    with pytest.raises(OSError):
        make(place, FILES, FILES + 1)
    cluster.restart("data-2")
    await_writable(cluster)
    assert_whole(place)


def test_a_server_that_is_restarted_meanwhile_lacks_none(cluster: LocalCluster, place: Path) -> None:
    done, ended = [], threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            try:
                make(place, number, number + 1)
            except OSError:
                continue  # while the server is away
            done.append(number)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    for name in DATA_SERVERS:
        before = len(done)
        wait_until(lambda before=before: len(done) > before + 20, 30, "files are made")
        cluster.restart(name)
    ended.set()
    writer.join()
    assert_whole(place, last=len(done))


def test_the_end_of_the_servers_leaves_no_ring(cluster: LocalCluster, place: Path) -> None:
    make(place)
    cluster.close()
    for server in cluster.config.data_servers:
        assert not list(SHARED_MEMORY.glob(f"{prefix(server.directory, BLOCKS)}*"))


def test_by_xml_alone_there_is_none(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    made = make_cluster(**SMALL, rpc="xml")
    made.start()
    made.mount(mountpoint)
    make(mountpoint)
    assert not rings_of(made)
    assert_whole(mountpoint)


MAKER = """
import os, sys
for number in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}/f{number}", "w") as file:
        file.write(f"content of {number} " * (number + 1))
    os.write(1, b".")
"""
"""It says of each file that it is closed, once it was told so."""


def prepare(cluster: LocalCluster, mountpoint: Path) -> list[Any]:
    cluster.mount(mountpoint)
    return [sys.executable, "-c", MAKER, with_rings(cluster, mountpoint), str(FILES)]


def judge(mountpoint: Path, made: int) -> str:
    return judge_files(mountpoint / "d", [content(number) for number in range(FILES)], made)


def test_kills_at_any_moment_lose_none(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    kill_at_random(make_cluster, tmp_path, 3, prepare, judge, 0.1, DATA_SERVERS)


@pytest.mark.long
def test_many_kills_at_any_moment_lose_none(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    kill_at_random(make_cluster, tmp_path, 12, prepare, judge, 0.1, DATA_SERVERS)
