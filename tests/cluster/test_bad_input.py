"""What cannot work is refused in one line that says what to do: nothing is started, nothing is lost."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import unexpected_lines
from tests.support import run_command
from tools import cli, lifecycle, mounts
from tools.cluster import LocalCluster
from tools.state_directory import CONFIG_NAME
from wire.config import ConfigError


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A directory to type commands in; whatever runs in it in the end is ended."""
    yield tmp_path
    for config in tmp_path.rglob(CONFIG_NAME):
        with suppress(ConfigError):  # some tests damage it, and start nothing
            LocalCluster.open(config.parent).close()


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that a command was refused in one line which contains the words."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("quorumfs: ")
    for word in words:
        assert word in done.stderr


def up_is_refused(here: Path, *options: str, words: list[str]) -> None:
    """Assert that `up` is refused, and leaves what there is as it was."""
    before = listing(here)
    refused(run_command(here, "up", *options), *words)
    assert listing(here) == before


def listing(here: Path) -> set[str]:
    """Return what lies in a directory, but for the lock and the logs."""
    found = {str(path.relative_to(here)) for path in here.rglob("*")}
    return {name for name in found if "/logs/" not in name and not name.endswith("/lock")}


def nothing_runs(cluster: LocalCluster) -> bool:
    """Tell whether all servers and mounts are down."""
    return all(process.state == "down" for process in cluster.status())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--servers", "3", "--read-quorum", "1", "--write-quorum", "2"],
            ["Qr=1", "Qw=2", "N=3", "raise Qr to 2"],
        ),
        (["--servers", "5", "--read-quorum", "6"], ["Qr=6", "choose a number from 1 to 5"]),
        (["--servers", "5", "--write-quorum", "0"], ["Qw=0", "choose a number from 1 to 5"]),
        (["--servers", "0"], ["N=0", "at least one"]),
        (["--servers", "many"], ["--servers", "many"]),
        (["--rpc", "carrier-pigeon"], ["--rpc", "msgpack"]),
        (["nowhere/mnt"], ["nowhere/mnt", "does not exist", "mkdir"]),
        (["/proc"], ["/proc", "mounted there already"]),
        (["--state", "/proc/nowhere"], ["/proc/nowhere", "cannot be made"]),
    ],
)
def test_up_with_a_setting_that_cannot_work(here: Path, options: list[str], words: list[str]) -> None:
    up_is_refused(here, *options, words=words)


def test_a_mount_point_that_is_a_file(here: Path) -> None:
    (here / "mnt").write_text("precious")
    up_is_refused(here, words=["mnt", "no directory"])
    assert (here / "mnt").read_text() == "precious"


def test_a_mount_point_that_has_files(here: Path) -> None:
    (here / "mnt").mkdir()
    (here / "mnt" / "precious").touch()
    up_is_refused(here, words=["mnt", "not empty"])


def test_a_state_directory_that_is_something_else(here: Path) -> None:
    (here / ".quorumfs").mkdir()
    (here / ".quorumfs" / "precious").touch()
    up_is_refused(here, words=["holds other files", "--state"])


def test_an_empty_state_directory_that_was_there_stays(here: Path) -> None:
    """It may be a disk's mount point, which cannot be removed at all."""
    (here / "disk").mkdir()
    up_is_refused(here, "nowhere/mnt", "--state", "disk", words=["nowhere/mnt", "does not exist"])


def test_a_new_cluster_that_another_command_took_is_left_to_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as another:

        def make(*words: Any) -> LocalCluster:
            cluster = create(*words)
            another.enter_context(LocalCluster.open(cluster.directory).lock())
            return cluster

        create = lifecycle._create
        monkeypatch.setattr(lifecycle, "_create", make)
        monkeypatch.chdir(here)
        assert cli.main(["up"]) == 1
    assert "another quorumfs command" in capsys.readouterr().err
    assert (here / ".quorumfs" / CONFIG_NAME).exists()


def test_a_configuration_of_ones_own_is_all_that_is_there_until_something_starts(here: Path) -> None:
    config = LocalCluster.create(here / "made", servers=3, read_quorum=2, write_quorum=3).config_file
    text = config.read_text().replace('listen = "127.0.0.1:', 'listen = "192.0.2.7:')
    (here / "own").mkdir()
    (here / "own" / CONFIG_NAME).write_text(text)
    before = listing(here)
    assert run_command(here, "status", "--state", "own").returncode == 3
    up_is_refused(here, "--state", "own", words=["start it on its own machine"])
    assert listing(here) == before


def test_options_that_contradict_the_stored_ones(here: Path) -> None:
    LocalCluster.create(here / ".quorumfs", servers=3, read_quorum=2, write_quorum=3)
    for option, value in (("servers", "5"), ("read-quorum", "3"), ("write-quorum", "2"), ("rpc", "xml")):
        up_is_refused(here, f"--{option}", value, words=[f"--{option} {value} contradicts", "--state"])


def test_a_port_in_use(here: Path) -> None:
    cluster = LocalCluster.create(here / ".quorumfs", servers=3, read_quorum=2, write_quorum=3)
    address = cluster.address("data-2")
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        up_is_refused(here, words=[address, "data-2", "in use"])
        assert nothing_runs(cluster)
        refused(run_command(here, "serve", "data", "--number", "2"), address, "in use")


@pytest.mark.damages("the metadata server's directory belongs to another cluster")
def test_a_directory_of_another_cluster(here: Path) -> None:
    """Found out by the server itself, after others have started: they are stopped again."""
    cluster = with_directories_of_another(here, "meta")
    done = run_command(here, "up")
    refused(done, "cluster")
    assert nothing_runs(cluster)
    assert (cluster.directory / CONFIG_NAME).exists()
    assert not (here / "mnt").exists()
    assert not unexpected_lines(cluster)


@pytest.mark.damages("two data servers' directories belong to another cluster")
def test_too_few_data_servers_that_can_start(here: Path) -> None:
    cluster = with_directories_of_another(here, "data-2", "data-3")
    refused(run_command(here, "up"), "data-2", "cluster")
    assert nothing_runs(cluster)
    assert not (here / "mnt").exists()


def with_directories_of_another(here: Path, *names: str) -> LocalCluster:
    """Make a cluster that has some directories of another one in the place of its own."""
    other = LocalCluster.create(here / "other", servers=3, read_quorum=2, write_quorum=3)
    other.start()
    other.stop()
    cluster = LocalCluster.create(here / ".quorumfs", servers=3, read_quorum=2, write_quorum=3)
    for name in names:
        (cluster.directory / name).rmdir()
        shutil.copytree(other.directory / name, cluster.directory / name)
    return cluster


def test_a_newer_format(here: Path) -> None:
    cluster = LocalCluster.create(here / ".quorumfs", servers=3, read_quorum=2, write_quorum=3)
    text = cluster.config_file.read_text()
    cluster.config_file.write_text(text.replace("format = 2\n", "format = 3\n"))
    up_is_refused(here, words=["format", "3", "newer release"])


@pytest.mark.parametrize("damage", ["", "format = 2\n", "format = ", "\x00", 'format = 2\nquorum = "x"\n'])
def test_a_damaged_configuration(here: Path, damage: str) -> None:
    LocalCluster.create(here / ".quorumfs")
    (here / ".quorumfs" / CONFIG_NAME).write_text(damage)
    up_is_refused(here, words=[CONFIG_NAME])


@pytest.mark.parametrize("device", ["missing", "forbidden"])
def test_no_fuse(
    here: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if device == "missing":
        monkeypatch.setattr(mounts, "FUSE_DEVICE", here / "no-fuse")
    else:
        monkeypatch.setattr(mounts.os, "open", refuse_to_open)
    monkeypatch.chdir(here)
    assert cli.main(["up"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ("modprobe fuse" if device == "missing" else "chmod 666") in line
    assert listing(here) == set()


def refuse_to_open(path: object, flags: int) -> int:
    raise PermissionError(13, "Permission denied")


def test_a_mount_that_fails_late_stops_what_was_started(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An existing cluster keeps its directory, and none of its servers is left running."""
    cluster = LocalCluster.create(here / ".quorumfs", servers=1, read_quorum=1, write_quorum=1)

    def fail(*_: object) -> str:
        raise ConfigError("cannot be mounted; do this")

    monkeypatch.setattr(lifecycle.LocalCluster, "mount", fail)
    monkeypatch.chdir(here)
    assert cli.main(["up"]) == 2
    assert capsys.readouterr().err == "quorumfs: cannot be mounted; do this\n"
    assert nothing_runs(cluster)
    assert cluster.config_file.exists()
    assert not (here / "mnt").exists()


@pytest.mark.parametrize(
    "words",
    [["status"], ["down"], ["config"], ["explain", "a.txt"], ["fault", "terminate", "3"], ["refill", "1"]],
)
def test_a_command_without_a_cluster(here: Path, words: list[str]) -> None:
    refused(run_command(here, *words), "no cluster here", "quorumfs up")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fault", "terminate", "9"], "choose a number from 1 to 3"),
        (["fault", "terminate", "nobody"], "there is no server nobody"),
        (["fault", "restart", "mediator", "--blank"], "only data servers"),
        (["fault", "corrupt", "a.txt", "--servers", "1,x"], "--servers 1,x"),
        (["fault", "corrupt", "a.txt", "--servers", "4"], "there is no server 4"),
        (["fault", "corrupt", "a.txt", "--servers", "1-999999999999"], "there is no server 999999999999"),
        (["fault", "corrupt", "a.txt", "--servers", "3-1"], "--servers 3-1"),
        (["fault", "corrupt", "a.txt", "--servers", "1-²"], "--servers 1-²"),
        (["fault", "restart", "mount-1"], "mount-1 is no server"),
        (["fault", "corrupt", "a.txt", "--servers", "1", "--kind", "smash"], "smash"),
        (["refill", "mediator"], "no data server"),
        (["scrub", "--server", "9"], "no data server 9; choose 1 to 3"),
        (["scrub", "--server", "0"], "no data server 0; choose 1 to 3"),
        (["scrub", "--server", "99999999999999999999"], "choose 1 to 3"),
        (["ledger", "--limit", "0"], "choose a number from 1 to"),
        (["ledger", "--limit", "99999999999999999999"], "choose a number from 1 to"),
        (["serve", "data"], "--number"),
        (["serve", "data", "--number", "7"], "7"),
        (["serve", "meta", "--lab"], "--lab"),
        (["mount"], "quorumfs up"),
        (["umount", "elsewhere"], "not mounted there"),
        (["fault"], "see: quorumfs fault --help"),
        (["nonsense"], "see: quorumfs --help"),
        ([], "see: quorumfs --help"),
    ],
)
def test_a_command_that_cannot_work_as_asked(here: Path, words: list[str], said: str) -> None:
    LocalCluster.create(here / ".quorumfs", servers=3, read_quorum=2, write_quorum=3)
    refused(run_command(here, *words), said)
