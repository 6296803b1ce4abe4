"""The local cluster itself: what runs is what it says, and comes back at the same place."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ClusterFactory
from tests.support import run_command, wait_until
from tools import mounts
from tools.cluster import LocalCluster
from tools.health import ask_mediator, await_writable
from tools.locate import mediator_client
from tools.processes import ClusterError, Process, python_environment
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.methods.common import CommonMethods

SERVERS = ["mediator", "metaserver", "data-1", "data-2", "data-3"]


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    return make_cluster(servers=3, read_quorum=2, write_quorum=3)


def test_start_stop_and_start_again_at_the_same_addresses(cluster: LocalCluster) -> None:
    assert cluster.start() == SERVERS
    await_writable(cluster)
    addresses = [cluster.address(name) for name in SERVERS]
    assert cluster.start() == []
    assert cluster.stop() == [], "all servers drain and end by themselves"
    again = LocalCluster.open(cluster.directory)
    assert [process.state for process in again.status()] == ["down"] * 5
    again.start()
    await_writable(again)
    assert [again.address(name) for name in SERVERS] == addresses


def test_a_data_server_that_takes_its_time_is_left_at_it(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [name for name in cluster.server_names if name != "data-2"]
    cluster.start(*others)
    waits_for_ever = [sys.executable, "-c", "import signal; signal.pause()"]
    monkeypatch.setattr(LocalCluster, "_command", lambda self, name: waits_for_ever)
    started, failed = cluster.start_enough(deadline_seconds=0)
    assert started == list(failed) == ["data-2"]
    assert "not ready within" in str(failed["data-2"])
    assert cluster.state("data-2") == "running"


@pytest.mark.parametrize("last", ["data-2", "mount-1"])
def test_an_interrupt_right_after_a_start_leaves_nothing_running(
    last: str, cluster: LocalCluster, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, spawned = Process.spawn, []

    def interrupted(process: Process, *arguments: Any) -> None:
        spawn(process, *arguments)
        spawned.append(process)
        if process.name == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Process, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.start()
        cluster.mount(mountpoint)
    assert spawned[-1].name == last
    assert spawned[-1].state() == "down"
    assert not mounts.mount_at(mountpoint)


def test_kill_pause_resume_and_restart(cluster: LocalCluster) -> None:
    cluster.start()
    before = identity_epoch(cluster, "data-2")
    cluster.kill("data-2")
    assert cluster.state("data-2") == "down"
    cluster.pause("data-3")
    assert cluster.state("data-3") == "paused"
    with pytest.raises(ClusterError, match="data-2 is down"):
        cluster.resume("data-2")
    cluster.resume("data-3")
    cluster.restart("data-2")
    assert identity_epoch(cluster, "data-2") > before
    await_writable(cluster)


def test_a_blank_restart_empties_one_data_server_only(cluster: LocalCluster) -> None:
    cluster.start()
    marks = [cluster.directory / f"data-{number}" / "mark" for number in (1, 2, 3)]
    for mark in marks:
        mark.touch()
    cluster.restart("data-2", blank=True)
    assert [mark.exists() for mark in marks] == [True, False, True]
    with pytest.raises(ConfigError, match="only data servers"):
        cluster.restart("metaserver", blank=True)


def test_a_blank_restart_empties_the_directory_behind_a_link(cluster: LocalCluster, tmp_path: Path) -> None:
    """As of a data server that was moved to another disk."""
    cluster.start("data-2")
    cluster.stop("data-2")
    place = cluster.directory / "data-2"
    elsewhere = place.rename(tmp_path / "disk")
    place.symlink_to(elsewhere)
    (elsewhere / "mark").touch()
    cluster.restart("data-2", blank=True)
    assert place.readlink() == elsewhere
    assert (elsewhere / "server.json").exists()
    assert not (elsewhere / "mark").exists()


def test_a_directory_that_cannot_be_emptied(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    mark = cluster.directory / "data-2" / "segments"
    mark.mkdir()
    with pytest.raises(ClusterError, match="cannot be emptied, and data-2 is down"):
        cluster.restart("data-2", blank=True)
    assert mark.exists()


def test_a_data_server_that_another_process_serves_is_not_emptied(cluster: LocalCluster) -> None:
    """It would go on acknowledging blocks into files that have no name any more."""
    cluster.start("data-2")
    mark = cluster.directory / "data-2" / "mark"
    mark.touch()
    pid_file = cluster.directory / "run" / "data-2.json"
    hidden = pid_file.rename(pid_file.with_suffix(".hidden"))
    with pytest.raises(ConfigError, match="served by another process"):
        LocalCluster.open(cluster.directory).restart("data-2", blank=True)
    assert mark.exists()
    hidden.rename(pid_file)


@pytest.mark.parametrize("place", ["data-1", "."])
def test_a_blank_restart_empties_no_directory_that_is_not_the_servers(
    cluster: LocalCluster, place: str
) -> None:
    """As where the configuration was edited by hand."""
    cluster.start("data-1")
    cluster.stop("data-1")
    text = cluster.config_file.read_text()
    cluster.config_file.write_text(text.replace('"data-2"', f'"{place}"'))
    before = sorted(cluster.directory.rglob("*"))
    with pytest.raises(ConfigError, match="choose another directory"):
        LocalCluster.open(cluster.directory).restart("data-2", blank=True)
    assert sorted(cluster.directory.rglob("*")) == before


def test_a_blank_restart_mends_a_damaged_directory(cluster: LocalCluster) -> None:
    cluster.start("data-2")
    cluster.stop("data-2")
    (cluster.directory / "data-2" / "server.json").write_text("damaged")
    cluster.restart("data-2", blank=True)
    assert cluster.state("data-2") == "running"


def test_a_mount_is_not_ended_by_asking_to_restart_it(cluster: LocalCluster) -> None:
    mount = cluster.process("mount-1")
    mount.spawn(["sleep", "60"], os.environ, "/nowhere")
    try:
        with pytest.raises(ConfigError, match="there is no mount-1"):
            cluster.restart("mount-1")
        assert mount.state() == "running"
    finally:
        cluster.stop("mount-1")


def test_a_state_directory_of_any_name(tmp_path: Path) -> None:
    """Of whatever bytes: a name is not always text."""
    state = tmp_path / os.fsdecode(b"\xff 'n\"\n%41?#")
    with LocalCluster.create(state, servers=1, read_quorum=1, write_quorum=1) as cluster:
        cluster.start()
        await_writable(cluster)
        for words in (["status"], ["fsck"], ["backup", "copy"], ["config"], ["df"]):
            done = run_command(tmp_path, *words, "--json", "--state", os.fspath(state))
            assert done.returncode == 0, done
        cluster.stop()
        done = run_command(tmp_path, "fsck", "--state", os.fspath(state))
        assert done.returncode == 0, done


def test_any_mediator_serves_the_commands(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=1, mediators=2, read_quorum=1, write_quorum=1)
    cluster.start("mediator-2", "metaserver", "data-1")
    with closing(mediator_client(cluster)) as client:
        assert client.call(10, CommonMethods.status)["servers"]


def test_the_mediator_notices_who_is_missing(cluster: LocalCluster) -> None:
    cluster.start()
    await_writable(cluster)
    cluster.kill("data-1")
    refused = wait_until(lambda: not_writable(cluster), 10, "the mediator refuses writes")
    assert "Qw=3" in refused["reason"]
    cluster.start()
    await_writable(cluster)


def test_two_commands_at_once(cluster: LocalCluster) -> None:
    again = LocalCluster.open(cluster.directory)
    with cluster.lock(), pytest.raises(ClusterError, match="another quorumfs command"), again.lock():
        pass
    with again.lock():
        pass


@pytest.mark.parametrize(
    "words", [["restore", "copy"], ["restore", "--release"], ["rebuild"], ["fsck"], ["backup", "copy"]]
)
def test_what_needs_a_stopped_cluster_is_refused_beside_another_command(
    cluster: LocalCluster, words: list[str]
) -> None:
    with cluster.lock():
        done = run_command(cluster.directory, *words, "--state", ".")
    assert done.returncode == 1
    assert "another quorumfs command is at work" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a read-only disk")
def test_a_cluster_whose_disk_is_read_only_by_now_can_be_stopped(cluster: LocalCluster) -> None:
    """As the disk can be looked after only when nothing has a file of it open."""
    cluster.start()
    place = str(cluster.directory)
    read_only = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    down = [sys.executable, "-P", "-m", "tools.cli", "down", "--state", place]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", read_only, place, *down],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {process.state for process in cluster.status()} == {"down"}
    cluster.start()


def test_a_used_directory_is_not_overwritten(cluster: LocalCluster) -> None:
    with pytest.raises(ConfigError, match="holds other files"):
        LocalCluster.create(cluster.directory)


def test_a_new_clusters_configuration_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nobody could tell, after a power loss, whose the durable files are."""
    synced: list[Path] = []
    sync = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    place = LocalCluster.create(tmp_path / "state").directory
    assert synced[-3:] == [tmp_path, place / "cluster.toml.tmp", place]


@pytest.mark.parametrize("existed", [False, True])
def test_a_cluster_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    state = tmp_path / "state"
    if existed:
        state.mkdir()
    make = Path.mkdir

    def fill_up(path: Path, *arguments: Any, **more: Any) -> None:
        if path.name == "data-2":
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", fill_up)
    with pytest.raises(ConfigError, match="No space left"):
        LocalCluster.create(state)
    assert [path.name for path in tmp_path.rglob("*")] == ["state"] * existed


@pytest.mark.parametrize("left", [["lock"], ["lock", "cluster.toml.tmp"], ["lock", "cluster.toml", "meta"]])
def test_a_cluster_whose_making_was_killed_is_made_by_the_next_call(tmp_path: Path, left: list[str]) -> None:
    with LocalCluster.create(tmp_path / "state", servers=1, read_quorum=1, write_quorum=1) as cluster:
        (cluster.directory / "cluster.toml.tmp").touch()
        for entry in cluster.directory.iterdir():
            if entry.name not in left:
                entry.rmdir() if entry.is_dir() else entry.unlink()
    if "cluster.toml" not in left:
        cluster = LocalCluster.create(cluster.directory, servers=1, read_quorum=1, write_quorum=1)
    with LocalCluster.open(cluster.directory) as again:
        assert again.start() == ["mediator", "metaserver", "data-1"]


def test_more_servers_than_ports(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose fewer servers"):
        LocalCluster.create(tmp_path / "state", servers=20_000, read_quorum=20_000, write_quorum=20_000)


def test_a_copy_of_a_running_clusters_directory_is_no_handle_on_it(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    cluster.start("data-1")
    copy = LocalCluster.open(shutil.copytree(cluster.directory, tmp_path / "copy"))
    assert copy.state("data-1") == "down"
    copy.stop()
    assert cluster.state("data-1") == "running"
    moved = LocalCluster.open(cluster.directory.rename(tmp_path / "moved"))
    assert moved.state("data-1") == "running", "it is the same cluster in another place"
    moved.stop()
    assert moved.state("data-1") == "down"


@pytest.mark.parametrize("content", ["", "{"])
def test_a_mount_whose_pid_file_is_torn_hides_nothing_else(cluster: LocalCluster, content: str) -> None:
    (cluster.directory / "run").mkdir()
    (cluster.directory / "run" / "mount-1.json").write_text(content)
    assert cluster.mount_names() == []
    assert [process.name for process in cluster.status()] == SERVERS


def test_close_ends_everything_in_whatever_state(tmp_path: Path) -> None:
    with LocalCluster.create(tmp_path / "state", servers=2, read_quorum=1, write_quorum=2) as cluster:
        cluster.start()
        cluster.pause("data-1")
        cluster.kill("data-2")
    assert [process.state for process in cluster.status()] == ["down"] * 4


def identity_epoch(cluster: LocalCluster, name: str) -> int:
    client = BlockingClient([cluster.address(name)], cluster.config.rpc)
    try:
        identity = client.call(5, CommonMethods.identity)
    finally:
        client.close()
    assert identity.cluster == cluster.config.cluster
    return identity.epoch


def not_writable(cluster: LocalCluster) -> dict[str, str] | None:
    status = ask_mediator(cluster)
    return status if status is not None and not status["writable"] else None
