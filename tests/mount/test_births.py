"""Files that a lone mount keeps to itself until their first commit: who comes finds them, or never could."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.messages import ROOT_INODE
from wire.methods import CommonMethods, NamespaceMethods


class Lone:
    """A cluster with one mount that counts as alone."""

    def __init__(self, cluster: LocalCluster, place: Path, server: BlockingClient) -> None:
        self.cluster, self.place, self._server = cluster, place, server

    def await_alone(self) -> None:
        """Wait until the mount has heard that it is alone, and keeps a new file to itself."""

        def keeps() -> bool:
            status = self._server.call_once(5, CommonMethods.status)
            if not status["alone_seconds_left"]:
                return False
            trial = self.place / "trial"
            with trial.open("w"):
                kept = not self.knows(b"trial")
            trial.unlink()
            return kept

        wait_until(keeps, 20, "the mount is alone")

    def knows(self, name: bytes) -> bool:
        """Tell whether the metadata server knows a name."""
        return bool(self._server.call_once(5, NamespaceMethods.resolve, ROOT_INODE, [name]))


@pytest.fixture
def lone(make_cluster: ClusterFactory, mountpoint: Path) -> Iterator[Lone]:
    cluster = make_cluster(**SMALL)
    cluster.start()
    cluster.mount(mountpoint)
    with closing(BlockingClient([cluster.address("metaserver")])) as server:
        found = Lone(cluster, mountpoint, server)
        found.await_alone()
        yield found


HOLDER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
print("open", flush=True)
sys.stdin.readline()
os.write(file, b"1234\\n")
try:
    os.close(file)
    print("closed", flush=True)
except OSError as error:
    print(error.errno, flush=True)
"""


@contextmanager
def holding(path: Path) -> Iterator[Callable[[], str]]:
    """Have another process create a file and keep it open; yield what has it write and close, and tells how.

    Not this process: each that it starts closes a copy of the descriptor, and that is a commit.
    """
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            assert holder.stdout.readline() == "open\n"

            def finish() -> str:
                holder.stdin.write("\n")
                holder.stdin.flush()
                return holder.stdout.readline().strip()

            yield finish
        finally:
            holder.kill()


def test_a_second_mount_finds_what_is_open(lone: Lone, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    with holding(lone.place / "a") as finish:
        assert not lone.knows(b"a")
        lone.cluster.mount(second)
        assert (second / "a").read_text() == ""
        with pytest.raises(FileExistsError):
            (second / "a").open("x")
        assert finish() == "closed"
    assert (second / "a").read_text() == "1234\n"


def test_a_killed_mount_takes_the_file_that_only_it_knew(lone: Lone) -> None:
    (lone.place / "closed").write_text("closed\n")
    with holding(lone.place / "a") as finish:
        assert not lone.knows(b"a")
        lone.cluster.kill("mount-1")
        assert finish() != "closed"
    assert lone.knows(b"closed")
    assert not lone.knows(b"a")


def test_who_comes_too_late_has_no_file(lone: Lone, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    with holding(lone.place / "a") as finish:
        assert not lone.knows(b"a")
        lone.cluster.pause("mount-1")
        try:
            lone.cluster.mount(second)
            with (second / "a").open("x") as other:
                other.write("second\n")
        finally:
            lone.cluster.resume("mount-1")
        (lone.place / "d").mkdir()
        assert finish() != "closed"
    assert (second / "a").read_text() == "second\n"
    assert (lone.place / "a").read_text() == "second\n"


def test_a_file_that_was_only_created_is_there_after_its_close(lone: Lone) -> None:
    created = lone.place / "created"
    for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        for more in (0, os.O_EXCL, os.O_TRUNC):
            os.close(os.open(created, access | os.O_CREAT | more, 0o640))
            assert lone.knows(b"created")
            assert created.stat().st_mode == 0o100640
            created.unlink()
    program = "import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT); os._exit(0)"
    subprocess.run([sys.executable, "-c", program, str(lone.place / "created")], check=True)
    assert lone.knows(b"created")
