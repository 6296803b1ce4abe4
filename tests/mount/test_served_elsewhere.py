"""A cluster whose servers were started elsewhere, as by `serve`: only its configuration is here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.support import run_command, wait_until
from tools import mounts
from tools.cluster import LocalCluster
from tools.health import ask_mediator
from tools.state_directory import CONFIG_NAME
from wire.config import dumps


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    made = make_cluster(servers=3, read_quorum=2, write_quorum=3)
    made.start()
    wait_until(lambda: (ask_mediator(made) or {"writable": False})["writable"], 20.0, "it can be written")
    return made


@pytest.fixture
def here(cluster: LocalCluster, mountpoint: Path) -> Path:
    """A directory to type commands in, whose state directory did not start the cluster."""
    state = mountpoint.parent / ".quorumfs"
    state.mkdir()
    (state / CONFIG_NAME).write_text(dumps(cluster.config))
    return mountpoint.parent


def text(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_its_status_is_told(cluster: LocalCluster, here: Path) -> None:
    assert text(run_command(here, "status"), 0).startswith("healthy")
    cluster.kill("data-2")
    wait_until(lambda: run_command(here, "status").returncode == 1, 20.0, "it is degraded")
    said = json.loads(text(run_command(here, "status", "--json"), 1))
    states = {server["name"]: server["state"] for server in said["servers"]}
    assert [name for name, state in states.items() if state == "down"] == ["data-2"]
    cluster.kill("mediator")
    assert "the mediator is down" in text(run_command(here, "status"), 1)


def test_another_clusters_servers_at_its_addresses_are_not_its_own(cluster: LocalCluster, here: Path) -> None:
    config = here / ".quorumfs" / CONFIG_NAME
    config.write_text(config.read_text().replace(cluster.config.cluster, "another"))
    assert text(run_command(here, "status"), 3).startswith("down")


def test_it_is_mounted_and_unmounted(here: Path, mountpoint: Path) -> None:
    text(run_command(here, "mount", "mnt"), 0)
    try:
        (mountpoint / "a.txt").write_text("1234\n")
        assert (mountpoint / "a.txt").read_text() == "1234\n"
    finally:
        text(run_command(here, "umount"), 0)
    assert mounts.mount_at(mountpoint) is None


def test_a_mount_says_which_server_it_lacks(cluster: LocalCluster, here: Path, mountpoint: Path) -> None:
    cluster.kill("metaserver")
    said = text(run_command(here, "mount", "mnt"), 2)
    assert "the metadata server cannot be asked" in said
    assert f"({cluster.address('metaserver')}: Connection refused)" in said
    assert mounts.mount_at(mountpoint) is None


def test_what_is_not_ended_is_not_said_to_be(cluster: LocalCluster, here: Path) -> None:
    said = text(run_command(here, "fault", "terminate", "2"), 2)
    assert f"was not started from {here}/.quorumfs; end it where it was started" in said
    assert "end them where they were started" in text(run_command(here, "down"), 1)
    assert cluster.state("data-2") == cluster.state("mediator") == "running"
    cluster.kill("data-2")
    text(run_command(here, "fault", "terminate", "2"), 0)


def test_a_server_of_another_machine_is_not_said_to_be_in_the_way(here: Path, cluster: LocalCluster) -> None:
    config = here / ".quorumfs" / CONFIG_NAME
    config.write_text(config.read_text().replace(cluster.address("data-1"), "192.0.2.7:7001"))
    cluster.kill("data-1")
    wait_until(lambda: run_command(here, "status").returncode == 1, 20.0, "it is degraded")
    said = text(run_command(here, "status"), 1)
    assert "data-1 is down; start it on its own machine with: quorumfs serve data --number 1\n" in said
    assert "end it where it was started" in text(run_command(here, "fault", "terminate", "1"), 2)
    cluster.stop()
    assert "start each server on its own machine" in text(run_command(here, "status"), 3)
    assert "start it on its own machine" in text(run_command(here, "up"), 2)
