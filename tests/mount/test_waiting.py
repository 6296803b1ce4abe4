"""The setting `unavailable = "wait"`: programs wait for servers that are away, until a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import wait_until
from tools.cluster import LocalCluster
from tools.status import take
from wire.config import Deadlines

DEADLINES = Deadlines(
    metadata_seconds=1.0, read_seconds=1.0, write_seconds=1.0, vote_seconds=0.5, silence_seconds=3.0
)
PROMPT_SECONDS = 5.0
BACK_SECONDS = 20.0


@pytest.fixture
def cluster(make_cluster: ClusterFactory, mountpoint: Path) -> LocalCluster:
    """A small cluster whose mount waits, with one file. It never counts as alone: it needs the servers."""
    made = make_cluster(**SMALL, deadlines=DEADLINES, unavailable="wait", alone_seconds=0.0)
    made.start()
    made.mount(mountpoint)
    (mountpoint / "a").write_bytes(b"old")
    return made


def shell(command: str, place: Path) -> subprocess.Popen[bytes]:
    """Run a command in a directory of the mount. It goes there itself: who starts it must not wait."""
    return subprocess.Popen(["bash", "-c", f"cd '{place}' && {command}"])


def await_waiting(cluster: LocalCluster, so_often: int = 1) -> None:
    """Wait until the mount says that a call has waited for longer than its deadline."""
    log = cluster.log_file("mount-1")
    wait_until(lambda: log.read_text().count("a call waits") >= so_often, BACK_SECONDS, "a call waits")


def test_a_write_waits_for_a_quorum(cluster: LocalCluster, mountpoint: Path) -> None:
    cluster.kill("data-1")
    wait_until(lambda: not take(cluster).health.writable, BACK_SECONDS, "it is noticed")
    with shell("echo new > a && cat a > b", mountpoint) as child:
        await_waiting(cluster)
        assert child.poll() is None
        assert (mountpoint / "a").read_bytes() == b"old"
        cluster.start("data-1")
        assert child.wait(BACK_SECONDS) == 0
    assert (mountpoint / "b").read_bytes() == b"new\n"


def test_every_kind_of_call_waits_for_the_mediator(cluster: LocalCluster, mountpoint: Path) -> None:
    for name in "defg":  # the kernel lets one directory have one change at a time
        (mountpoint / name).mkdir()
    (mountpoint / "g" / "x").touch()
    cluster.kill("mediator")
    commands = ["ls d", "mkdir e/new", "cat a", "tee f/b <<< 1", "mv g/x g/y", "stat -f ."]
    children = [shell(f"{command} > /dev/null", mountpoint) for command in commands]
    try:
        await_waiting(cluster, len(commands))
        assert [child.poll() for child in children] == [None] * len(commands)
    finally:
        cluster.start("mediator")
        status = [child.wait(BACK_SECONDS) for child in children]
    assert status == [0] * len(commands)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("victim", ["mediator", "data-1"])
def test_a_program_that_waits_is_ended_by_a_signal(
    cluster: LocalCluster, mountpoint: Path, victim: str, number: signal.Signals
) -> None:
    cluster.kill(victim)
    # Python handles SIGINT: it is the system call that must end, for its handler to run. What runs in the
    # background inherits that it is ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{heed}; open('{mountpoint}/new', 'w').write('x')"], stderr=subprocess.DEVNULL
    ) as child:
        try:
            await_waiting(cluster)
            assert child.poll() is None
            child.send_signal(number)
            assert child.wait(PROMPT_SECONDS) == -number
        finally:
            child.kill()
    cluster.start(victim)
    wait_until(lambda: (mountpoint / "a").read_bytes() == b"old", BACK_SECONDS, "the mount goes on")


@contextmanager
def told_to(path: Path, flags: int, before: str, after: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program that opens a file, does something with it, and another thing once `go_on` is called."""
    steps = [
        "import os",
        f"f = os.open('{path}', {flags})",
        before or "pass",
        "print(flush=True)",
        "input()",
        after,
    ]
    with subprocess.Popen(
        [sys.executable, "-c", "; ".join(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child


def go_on(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_what_a_killed_program_wrote_is_committed_when_the_servers_are_back(
    cluster: LocalCluster, mountpoint: Path
) -> None:
    with told_to(mountpoint / "a", os.O_WRONLY, "os.write(f, b'NEW')", "os.close(f)") as child:
        cluster.kill("data-1")
        go_on(child)
        await_waiting(cluster)
        assert child.poll() is None
        child.kill()
        assert child.wait(PROMPT_SECONDS) == -signal.SIGKILL
    cluster.start("data-1")
    wait_until(lambda: (mountpoint / "a").read_bytes() == b"NEW", BACK_SECONDS, "it is committed")


def test_who_waits_for_the_commit_of_another_program_is_ended_by_a_signal(
    cluster: LocalCluster, mountpoint: Path
) -> None:
    """A time that is set comes after the commit under way, which waits for a data server."""
    file = mountpoint / "a"
    with (
        told_to(file, os.O_WRONLY, "os.write(f, b'NEW')", "os.close(f)") as writer,
        told_to(file, os.O_RDONLY, "", "os.utime(f, (5, 5))") as child,
    ):
        cluster.kill("data-1")
        go_on(writer)
        await_waiting(cluster)
        go_on(child)
        try:
            place = Path(f"/proc/{child.pid}/wchan")
            wait_until(lambda: "request_wait_answer" in place.read_text(), PROMPT_SECONDS, "the call is made")
            child.kill()
            assert child.wait(PROMPT_SECONDS) == -signal.SIGKILL
        finally:
            cluster.start("data-1")
        assert writer.wait(BACK_SECONDS) == 0
    assert file.read_bytes() == b"NEW"


def test_the_mount_ends_although_a_program_waits(cluster: LocalCluster, mountpoint: Path) -> None:
    cluster.kill("mediator")
    with shell("cat a a a", mountpoint) as child:
        await_waiting(cluster)
        assert cluster.stop("mount-1") == []
        assert child.wait(PROMPT_SECONDS) != 0
