"""Small blocks given to five data servers without a call: what was acknowledged is on all of them."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dataserver import offline
from tests.conftest import ClusterFactory
from tests.mount.test_given_blocks import MAKER, content, make, rings_of
from tests.support import run_command, wait_until
from tools.cluster import LocalCluster
from tools.health import await_writable
from tools.state_directory import forget_rings
from tools.whole import check_stopped
from wire.ring_head import BLOCKS, SHARED_MEMORY, prefix

DATA_SERVERS = tuple(f"data-{number}" for number in range(1, 6))


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    made = make_cluster()
    made.start()
    return made


def used(cluster: LocalCluster) -> int:
    return sum(head.taken > 0 for _, head in rings_of(cluster))


def mounted(cluster: LocalCluster, mountpoint: Path) -> Path:
    """Return a directory on a new mount, once all data servers take blocks without calls."""
    mountpoint.mkdir(exist_ok=True)
    cluster.mount(mountpoint)
    warm, directory = mountpoint / "warm", mountpoint / "d"
    warm.mkdir(exist_ok=True)
    wait_until(lambda: make(warm, 0, 40) and used(cluster) == 5, 40, "all are given blocks")
    directory.mkdir(exist_ok=True)
    return directory


def everything(cluster: LocalCluster) -> tuple[str, ...]:
    return (*cluster.mount_names(), *cluster.mediator_names, "metaserver", *DATA_SERVERS)


def assert_on_all_five(cluster: LocalCluster) -> None:
    """Check each committed block on each server, in the directories of servers that have ended."""
    for server in cluster.config.data_servers:
        replicas = offline.read(server.directory, verify=True).replicas
        assert {replica.verdict for replica in replicas} == {"good"}, server.number
    assert not check_stopped(cluster.config).findings


def mounted_again(cluster: LocalCluster, mountpoint: Path) -> Path:
    """Return the directory of `mounted` on a new mount."""
    mountpoint.mkdir()
    cluster.mount(mountpoint)
    return mountpoint / "d"


def assert_whole(directory: Path, files: int, found: str = "") -> None:
    """Read the first files in a directory; `found` says what a failure is of."""
    for number in range(files):
        assert (directory / f"f{number}").read_text() == content(number), f"{found} file {number} of {files}"


def go_on(cluster: LocalCluster) -> None:
    """Start the servers, which take in what they were given, and end them again, before any can be healed."""
    cluster.start("metaserver", *DATA_SERVERS)
    for name in (*DATA_SERVERS, "metaserver"):
        cluster.stop(name)
    assert_on_all_five(cluster)
    cluster.clear_dead_mounts()
    cluster.start()
    await_writable(cluster)


def test_five_that_are_stopped_in_a_run_and_killed_with_all_others_have_each_closed_file(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    place, closed = mounted(cluster, tmp_path / "mnt"), 0

    def write() -> None:
        nonlocal closed
        with suppress(OSError):
            for number in range(200):
                make(place, number, number + 1)
                closed = number + 1

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: closed > 20, 30, "files are made")
    for name in DATA_SERVERS:
        cluster.pause(name)
    acknowledged = closed
    for name in everything(cluster):
        cluster.kill(name)
    writer.join()
    acknowledged = max(acknowledged, closed)
    go_on(cluster)
    assert_whole(mounted_again(cluster, tmp_path / "again"), acknowledged)


def test_one_of_five_that_is_killed_refuses_later_writes_and_loses_nothing(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    place = mounted(cluster, tmp_path / "mnt")
    for turn, name in enumerate(DATA_SERVERS):
        make(place, 20 * turn, 20 * turn + 20)
        cluster.kill(name)
        with pytest.raises(OSError):
            make(place, 1000, 1001)
        cluster.start(name)
        await_writable(cluster)
    assert_whole(place, 20 * len(DATA_SERVERS))
    for name in cluster.mount_names():
        cluster.unmount(name)  # while there is a server to take leave of: it would wait for one
    cluster.stop()
    assert_on_all_five(cluster)


def kill_all_at_random(cluster: LocalCluster, base: Path, rounds: int) -> None:
    """Have a program make files, kill every process at any moment, and look for each file that was closed."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for turn in range(rounds):
        place = mounted(cluster, base / f"mnt-{turn}")
        command = [sys.executable, "-c", MAKER, place, "100"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
            assert program.stdout is not None
            dots = len(program.stdout.read(1))
            time.sleep(draw.random() * 0.15)
            victims = list(everything(cluster))
            draw.shuffle(victims)
            for name in victims:
                cluster.kill(name)
            dots += len(program.communicate(timeout=60)[0])
        go_on(cluster)
        directory = mounted_again(cluster, base / f"again-{turn}")
        assert_whole(directory, dots, f"seed {seed}, round {turn}:")
        for path in directory.iterdir():
            path.unlink()
        for name in cluster.mount_names():
            cluster.unmount(name)


def test_kills_of_everything_at_any_moment_lose_none(cluster: LocalCluster, tmp_path: Path) -> None:
    kill_all_at_random(cluster, tmp_path, 2)


@pytest.mark.long
def test_many_kills_of_everything_at_any_moment_lose_none(cluster: LocalCluster, tmp_path: Path) -> None:
    kill_all_at_random(cluster, tmp_path, 12)


def test_down_leaves_no_ring(cluster: LocalCluster, tmp_path: Path) -> None:
    make(mounted(cluster, tmp_path / "mnt"), 0, 20)
    done = run_command(tmp_path, "down", "--state", str(cluster.directory))
    assert done.returncode == 0, done
    for server in cluster.config.data_servers:
        assert not list(SHARED_MEMORY.glob(f"{prefix(server.directory, BLOCKS)}*"))
    assert_on_all_five(cluster)


def test_what_killed_servers_leave_goes_with_their_directories(cluster: LocalCluster, tmp_path: Path) -> None:
    make(mounted(cluster, tmp_path / "mnt"), 0, 20)
    for name in everything(cluster):
        cluster.kill(name)
    assert len(rings_of(cluster)) >= 5
    forget_rings(cluster.config)
    assert not rings_of(cluster)


def test_two_mediators_give_to_the_same_servers(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    cluster = make_cluster(mediators=2)
    cluster.start()
    place = mounted(cluster, tmp_path / "mnt")
    made = 0
    for victim in cluster.mediator_names * 2:
        for _ in range(3):
            make(place, made, made + 20)
            made += 20
        cluster.kill(victim)
        make(place, made, made + 20)
        made += 20
        cluster.start(victim)
    for name in everything(cluster):
        cluster.kill(name)
    go_on(cluster)
    assert_whole(mounted_again(cluster, tmp_path / "again"), made)
