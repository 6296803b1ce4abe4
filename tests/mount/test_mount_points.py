"""Mount points as people have them: behind links, one on another, of odd names, taken by another cluster."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import unexpected_lines
from tests.support import ROOT, run_command
from tools import mounts
from tools.cluster import LocalCluster
from tools.state_directory import CONFIG_NAME
from wire.config import ConfigError

SINGLE = ["--servers", "1"]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to run a process as another user takes root")


@pytest.fixture
def here(tmp_path: Path, fuse_device: None) -> Iterator[Path]:
    """A directory to type commands in; the clusters in it are ended, and their logs are read."""
    yield tmp_path
    for config in tmp_path.glob(f"*/{CONFIG_NAME}"):
        with suppress(ConfigError):
            cluster = LocalCluster.open(config.parent)
            cluster.close()
            assert not unexpected_lines(cluster)


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done


def test_a_mount_point_that_is_a_link(here: Path) -> None:
    (here / "real").mkdir()
    (here / "mnt").symlink_to("real")
    ok(run_command(here, "up", *SINGLE))
    (here / "mnt" / "a.txt").write_text("1234\n")
    assert run_command(here, "umount", "mnt").stdout == f"unmounted {here / 'real'}\n"
    ok(run_command(here, "up"))
    LocalCluster.open(here / ".quorumfs").kill("mount-1")
    ok(run_command(here, "up"))
    assert (here / "mnt" / "a.txt").read_text() == "1234\n"
    ok(run_command(here, "down"))
    assert mounts.mount_at(here / "real") is None


def test_a_mount_on_a_mount_is_ended_first(here: Path) -> None:
    ok(run_command(here, "up", *SINGLE))
    (here / "mnt" / "deep").mkdir()
    ok(run_command(here, "mount", "mnt/deep"))
    ok(run_command(here, "down"))
    assert mounts.mount_at(here / "mnt") is None


@pytest.mark.parametrize("words", [["down"], ["umount"]])
def test_while_one_mount_is_in_use_all_stay(here: Path, words: list[str]) -> None:
    ok(run_command(here, "up", *SINGLE))
    for name in ("a", "z"):
        (here / name).mkdir()
        ok(run_command(here, "mount", name))
    with (here / "a" / "file").open("wb"):
        holder = subprocess.Popen(["sleep", "60"], cwd=here / "a")
    try:
        done = run_command(here, *words)
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 1
    assert "is in use by sleep" in done.stderr
    assert all(mounts.mount_at(here / name) is not None for name in ("mnt", "a", "z"))
    ok(run_command(here, "down"))


def test_a_mount_point_of_any_name(here: Path) -> None:
    name = "-a b\nc\rd\fe\u2028f#g\\hä"
    (here / name).mkdir()
    ok(run_command(here, "up", *SINGLE, "--", name))
    (here / name / "a.txt").write_text("1234\n")
    ok(run_command(here, "down"))
    assert mounts.mount_at(here / name) is None


def test_what_another_cluster_has_mounted_there_by_now_is_left_alone(here: Path) -> None:
    """A mount died, was taken away by hand, and another cluster was mounted at its place."""
    (here / "mnt").mkdir()
    ok(run_command(here, "up", *SINGLE, "--state", "first"))
    first = LocalCluster.open(here / "first")
    first.kill("mount-1")
    mounts.unmount(here / "mnt")
    ok(run_command(here, "up", *SINGLE, "--state", "second"))
    (here / "mnt" / "a.txt").write_text("1234\n")
    ok(run_command(here, "down", "--state", "first"))
    assert (here / "mnt" / "a.txt").read_text() == "1234\n"
    assert first.mount_names() == []


def test_up_tells_of_the_mount_that_was_asked_for(here: Path) -> None:
    ok(run_command(here, "up", *SINGLE))
    (here / "second").mkdir()
    for _ in range(2):
        assert f"mounted on {here / 'second'}:" in run_command(here, "up", "second").stdout


def test_the_commands_to_try_are_of_the_same_cluster(here: Path) -> None:
    (here / "mnt").mkdir()
    done = run_command(here, "up", *SINGLE, "--state", "my state")
    ok(done)
    tried = [line.split("; ")[-1].split()[1:] for line in done.stdout.splitlines() if "fault" in line]
    assert [words[0] for words in tried] == ["explain", "status"]
    ok(run_command(here, *shlex.split(" ".join(tried[1]))))
    done = run_command(here, "down", "--state", "my state")
    assert "`quorumfs up --state 'my state'` brings them back" in done.stdout


def test_what_is_mounted_is_known_without_asking_it(here: Path) -> None:
    """The mount's process answers nothing; a question to it would wait for that."""
    ok(run_command(here, "up", *SINGLE))
    mount = LocalCluster.open(here / ".quorumfs").process("mount-1")
    mount.signal(signal.SIGSTOP)
    try:
        done = run_command(here, "mount", "mnt", seconds=20)
    finally:
        mount.signal(signal.SIGCONT)
    assert "mounted there already" in done.stderr


def test_what_was_unmounted_by_other_means_can_be_mounted_again_at_once(here: Path) -> None:
    ok(run_command(here, "up", *SINGLE))
    cluster = LocalCluster.open(here / ".quorumfs")
    cluster.process("mount-1").signal(signal.SIGSTOP)  # as while it still writes
    try:
        mounts.unmount(here / "mnt")
        ok(run_command(here, "mount", "mnt"))
        assert mounts.mount_at(here / "mnt") is not None
    finally:
        cluster.process("mount-1").signal(signal.SIGCONT)
    ok(run_command(here, "down"))


@needs_root
def test_nobody_else_names_the_configuration_of_a_mount(here: Path) -> None:
    """Any user may have a process that looks like the mount's; `up` would start what that one says."""
    ok(run_command(here, "up", *SINGLE))
    other = here / "other" / CONFIG_NAME
    words = ["sleep 60; :", "fusefs", "--config", str(other), str(here / "mnt")]
    with subprocess.Popen(["sh", "-c", *words], user=NOBODY, start_new_session=True) as forged:
        try:
            assert mounts.config_of_mount(here / "mnt" / "a") == here / ".quorumfs" / CONFIG_NAME
            LocalCluster.open(here / ".quorumfs").kill("mount-1")
            assert mounts.config_of_mount(here / "mnt" / "a") is None
        finally:
            os.killpg(forged.pid, signal.SIGKILL)


def test_a_mount_in_another_mount_namespace_is_not_called_unmounted(here: Path) -> None:
    """It was waited for, and then said to be unmounted but to write still."""
    words = f"{shlex.quote(sys.executable)} -P -m tools.cli up --servers 1"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", words]
    ok(run_process(command, here))
    assert mounts.mount_at(here / "mnt") is None
    refused = run_command(here, "down", seconds=20)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "in another mount namespace" in refused.stderr
    there = refused.stderr.split("`")[1]
    ok(run_process(shlex.split(there), here))
    ok(run_command(here, "down"))


def run_process(command: list[str], here: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=60, check=False)
