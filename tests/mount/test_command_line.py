"""The command line on a real cluster and mount, each command a process of its own, as people type them."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import unexpected_lines
from tests.mount.test_supervisor import child_of
from tests.support import ROOT, is_scrubbed, run_command, wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.methods import CommonMethods

SMALL = ["--servers", "3", "--read-quorum", "2", "--write-quorum", "3"]


@pytest.fixture
def here(tmp_path: Path, fuse_device: None) -> Iterator[Path]:
    """A directory to type commands in; the cluster in it is ended, and its logs are read."""
    yield tmp_path
    with suppress(ConfigError):
        cluster = LocalCluster.open(tmp_path / ".quorumfs")
        cluster.close()
        assert not unexpected_lines(cluster)


@pytest.fixture
def up(here: Path) -> Path:
    """The same, with a small cluster mounted on ./mnt."""
    done = run_command(here, "up", *SMALL)
    assert done.returncode == 0, done.stderr
    return here


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def data(here: Path, *words: str, status: int = 0) -> Any:
    done = run_command(here, *words, "--json")
    assert done.returncode == status, done
    return json.loads(done.stdout)


def test_who_stands_in_the_mount_can_look_and_start_again(up: Path) -> None:
    """Without a look into the mount, which answers nothing while the mediator is down."""
    inside = up / "mnt" / "sub"
    inside.mkdir()
    typed = f"{shlex.quote(sys.executable)} -P -m tools.cli"
    script = f"{typed} fault terminate mediator; {typed} status; {typed} up; {typed} status"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", script]
    shell = subprocess.run(
        command, cwd=inside, env=environment, capture_output=True, text=True, timeout=25, check=True
    )
    assert "the mediator is down" in shell.stdout
    assert f"mounted on {up}/mnt" in shell.stdout
    assert shell.stderr == ""
    assert list(inside.iterdir()) == []
    ok(run_command(up, "down"))  # what was started from in there does not stand in there


def healthy(here: Path) -> bool:
    return run_command(here, "status").returncode == 0


def test_up_work_down_up(here: Path) -> None:
    said = ok(run_command(here, "up", *SMALL))
    assert str(here / "mnt") in said
    assert "hree things to try" in said
    (here / "mnt" / "a.txt").write_text("1234\n")
    assert ok(run_command(here, "up")).startswith("quorumfs is mounted on")
    wait_until(lambda: healthy(here), 20, "the cluster is healthy")
    ok(run_command(here, "down"))
    assert list((here / "mnt").iterdir()) == []
    assert run_command(here, "status").returncode == 3
    assert "nothing was running" in ok(run_command(here, "down"))
    ok(run_command(here, "up"))
    assert (here / "mnt" / "a.txt").read_text() == "1234\n"


@pytest.mark.parametrize("write_quorum", [2, 3])
def test_up_without_a_data_server_whose_disk_is_gone(here: Path, write_quorum: int) -> None:
    """A read quorum can start: files can be read, and written if a write quorum can."""
    ok(run_command(here, "up", *SMALL[:-1], str(write_quorum)))
    file, directory = here / "mnt" / "a.txt", here / ".quorumfs" / "data-2"
    file.write_text("1234\n")
    ok(run_command(here, "down"))
    kept = directory.rename(here / "kept")
    directory.symlink_to(here / "no disk is here")
    done = run_command(here, "up")
    assert done.returncode == 1
    assert done.stdout.startswith("quorumfs is mounted on")
    [line] = done.stderr.splitlines()
    assert "data-2 is not up" in line and str(directory) in line
    assert file.read_text() == "1234\n"
    if write_quorum == 2:
        file.write_text("5678\n")
    else:
        with pytest.raises(OSError) as refused:
            file.write_text("5678\n")
        assert refused.value.errno == errno.EROFS
    said = data(here, "up", status=1)
    assert said["started"] == [] and list(said["not_up"]) == ["data-2"]
    directory.unlink()
    kept.rename(directory)
    ok(run_command(here, "up"))
    file.write_text("9\n")
    wait_until(lambda: healthy(here), 20, "the cluster is healthy")


def test_metadata_that_is_gone_is_not_begun_anew_unasked(up: Path) -> None:
    file, metadata = up / "mnt" / "a.txt", up / ".quorumfs" / "meta"
    file.write_text("1234\n")
    ok(run_command(up, "down"))
    kept = metadata.rename(up / "kept")
    for words in (["up"], ["fault", "restart", "metaserver"], ["serve", "meta"]):
        metadata.mkdir(exist_ok=True)
        done = run_command(up, *words)
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert "quorumfs rebuild" in line and "--begin-empty" in line
        assert not list(metadata.iterdir())
        metadata.rmdir()
    kept.rename(metadata)
    ok(run_command(up, "up"))
    assert file.read_text() == "1234\n"
    ok(run_command(up, "down"))
    metadata.rename(kept)
    ok(run_command(up, "up", "--begin-empty"))
    assert not file.exists()
    file.write_text("5678\n")
    ok(run_command(up, "down"))
    ok(run_command(up, "up"))
    assert file.read_text() == "5678\n"


def test_terminate_explain_restart(up: Path) -> None:
    file = up / "mnt" / "a.txt"
    file.write_text("1234\n")
    ok(run_command(up, "fault", "terminate", "3"))
    wait_until(lambda: data(up, "status", status=1)["writable"] is False, 10, "writes are refused")
    with pytest.raises(OSError) as refused:
        file.write_text("9012\n")
    assert refused.value.errno == errno.EROFS
    assert file.read_text() == "1234\n"
    status = data(up, "status", status=1)
    assert "quorumfs fault restart 3" in " ".join(status["advice"])
    assert "Qw=3" in status["reason"]
    report = data(up, "explain", "mnt/a.txt")
    assert [block["verdicts"] for block in report["blocks"]] == [{"1": "good", "2": "good", "3": "down"}]
    assert report["last_refusal"] is not None
    for words in (["explain", "mnt/a.txt"], ["status"]):
        assert "Qw=3" in run_command(up, *words).stdout
    ok(run_command(up, "fault", "restart", "3", "--blank"))
    wait_until(lambda: healthy(up), 20, "the blank server is refilled")
    file.write_text("9012\n")
    verdicts = data(up, "explain", "mnt/a.txt")["blocks"][0]["verdicts"]
    assert verdicts == {"1": "good", "2": "good", "3": "good"}


def test_corrupt_by_path_is_repaired_behind_the_readers_back(up: Path) -> None:
    file = up / "mnt" / "a.txt"
    file.write_text("1234\n")
    cluster = LocalCluster.open(up / ".quorumfs")
    with closing(BlockingClient([cluster.address("mediator")])) as mediator:
        wait_until(lambda: is_scrubbed(mediator.call(5.0, CommonMethods.status)), 10, "the first scrub ends")
    done = data(up, "fault", "corrupt", "mnt/a.txt", "--servers", "2")
    assert [item["server"] for item in done] == [2]
    before = data(up, "explain", "mnt/a.txt")["blocks"][0]["verdicts"]
    assert before == {"1": "good", "2": "corrupt", "3": "good"}
    assert file.read_text() == "1234\n"
    wait_until(
        lambda: set(data(up, "explain", "mnt/a.txt")["blocks"][0]["verdicts"].values()) == {"good"},
        10,
        "all replicas are good again",
    )


def test_different_and_equal_wrong_bytes_are_never_returned(up: Path) -> None:
    file = up / "mnt" / "a.txt"
    for options in (["--servers", "1-2", "--different"], ["--servers", "1,2,3", "--kind", "lie"]):
        file.write_text("1234\n")
        ok(run_command(up, "fault", "corrupt", "mnt/a.txt", *options))
        with pytest.raises(OSError) as refused:
            file.read_text()
        assert refused.value.errno == errno.EIO
        assert data(up, "explain", "mnt/a.txt")["last_refusal"]["operation"] == "read"


def test_the_cluster_is_found_from_inside_the_mount(up: Path) -> None:
    directory = up / "mnt" / "deep" / "er"
    directory.mkdir(parents=True)
    (directory / "a.txt").write_text("1234\n")
    report = data(directory, "explain", "a.txt")
    assert report["paths"] == ["/deep/er/a.txt"]
    assert data(directory, "status")["state_directory"] == str(up / ".quorumfs")
    assert data(Path("/"), "explain", str(directory / "a.txt"))["ino"] == report["ino"]


def test_a_path_is_found_without_a_mount(up: Path) -> None:
    (up / "mnt" / "a.txt").write_text("1234\n")
    ino = (up / "mnt" / "a.txt").stat().st_ino
    assert ok(run_command(up, "umount")) == f"unmounted {up / 'mnt'}\n"
    assert data(up, "explain", "a.txt")["ino"] == ino
    assert run_command(up, "explain", "b.txt").returncode == 2
    ok(run_command(up, "mount"))
    assert (up / "mnt" / "a.txt").read_text() == "1234\n"


def test_two_mounts_and_a_mount_that_died(up: Path) -> None:
    (up / "second").mkdir()
    ok(run_command(up, "mount", "second"))
    (up / "mnt" / "a.txt").write_text("1234\n")
    assert (up / "second" / "a.txt").read_text() == "1234\n"
    LocalCluster.open(up / ".quorumfs").kill("mount-1")
    assert "mount on" in " ".join(data(up, "status", status=1)["advice"])
    ok(run_command(up, "up", "mnt"))
    assert (up / "mnt" / "a.txt").read_text() == "1234\n"
    # What `mount` made has a parent that mounts it again; what `up` made stays dead until the next `up`.
    record = LocalCluster.open(up / ".quorumfs").process("mount-2").record()
    assert record is not None
    child = child_of(record.pid)
    assert child is not None
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: child_of(record.pid) not in (None, child), 10, "another has begun")
    # pathlib's exists() would raise while the dead mount is not taken away yet.
    wait_until(lambda: os.path.exists(up / "second" / "a.txt"), 10, "mounted again")  # noqa: PTH110
    refused = run_command(up, "mount", "second")
    assert refused.returncode == 2
    assert "mounted there already" in refused.stderr


def test_down_while_the_mount_is_in_use(up: Path) -> None:
    with (up / "mnt" / "a.txt").open("w") as file:
        done = run_command(up, "down")
        assert done.returncode == 1
        assert f"({os.getpid()})" in done.stderr, "it names who uses it"
        file.write("1234\n")
    assert (up / "mnt" / "a.txt").read_text() == "1234\n"
    ok(run_command(up, "down"))


def test_json_of_every_command(up: Path) -> None:
    (up / "mnt" / "a.txt").write_text("1234\n")
    for words in ("status", "config", "up", "refill 1", "fault pause 1", "fault resume 1"):
        if words != "fault resume 1":
            wait_until(lambda: healthy(up), 20, "the cluster is healthy")
        assert data(up, *words.split())
    wait_until(lambda: healthy(up), 20, "the cluster is healthy")
    assert data(up, "umount") == {"unmounted": [str(up / "mnt")]}
    assert data(up, "mount")["mountpoint"] == str(up / "mnt")
    assert set(data(up, "down")["stopped"]) == {"mediator", "metaserver", "data-1", "data-2", "data-3"}
