"""Killed servers, lost quorums, and several mounts: what closed files and running programs see of it."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.cluster.quorum_client import connected
from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.work import TREE, run
from tests.support import wait_until
from tools.cluster import LocalCluster

MIB = 1 << 20


@pytest.fixture
def cluster(make_cluster: ClusterFactory, mountpoint: Path) -> LocalCluster:
    """A small cluster, up and mounted."""
    made = make_cluster(**SMALL)
    made.start()
    made.mount(mountpoint)
    return made


def source_tree(place: Path, copies: int = 4) -> Path:
    """Make a local tree that takes a while to copy."""
    for number in range(copies):
        run(place, f"mkdir -p source && cp -r {TREE}/wire source/{number}")
    return place / "source"


@pytest.mark.parametrize("victim", ["mediator", "metaserver"])
def test_a_copy_goes_on_when_a_server_is_killed(
    cluster: LocalCluster, mountpoint: Path, tmp_path: Path, victim: str
) -> None:
    source = source_tree(tmp_path)
    total = sum(1 for _ in source.rglob("*"))
    copied = mountpoint / "source"
    with subprocess.Popen(["cp", "-r", source, mountpoint], stderr=subprocess.PIPE, text=True) as copying:
        for part in (0.2, 0.5):
            wait_until(
                lambda part=part: sum(1 for _ in copied.rglob("*")) > part * total, 60, "some is copied"
            )
            cluster.kill(victim)
            cluster.start(victim)
        _, said = copying.communicate(timeout=120)
        assert (copying.returncode, said) == (0, "")
    run(tmp_path, f"diff -r {source} {copied}")


def test_open_files_outlive_the_metaserver(cluster: LocalCluster, mountpoint: Path) -> None:
    file = os.open(mountpoint / "a", os.O_RDWR | os.O_CREAT)
    os.write(file, b"before")
    os.fsync(file)
    (mountpoint / "a").unlink()
    cluster.kill("metaserver")
    cluster.start("metaserver")
    os.setxattr(mountpoint, "user.quorumfs.drop_caches", b"")
    assert os.pread(file, 10, 0) == b"before"
    assert os.fstat(file).st_nlink == 0
    os.pwrite(file, b"after", 0)
    os.fsync(file)
    assert os.pread(file, 10, 0) == b"aftere"
    os.close(file)


def test_everything_is_killed_and_closed_files_are_whole(cluster: LocalCluster, mountpoint: Path) -> None:
    written = {f"file-{number}": os.urandom(1000 * number) for number in range(30)}
    for name, data in written.items():
        (mountpoint / name).write_bytes(data)
    for name in [*cluster.mount_names(), *cluster.server_names]:
        cluster.kill(name)
    cluster.clear_dead_mounts()
    cluster.start()
    cluster.mount(mountpoint)
    assert {entry.name: entry.read_bytes() for entry in mountpoint.iterdir()} == written


def test_a_failed_write_leaves_the_old_content(cluster: LocalCluster, mountpoint: Path) -> None:
    file = mountpoint / "a"
    old = os.urandom(3 * MIB)
    file.write_bytes(old)
    other = file.open("rb")
    with pytest.raises(OSError) as failed, file.open("wb", buffering=0) as writer:
        for number in range(400):
            writer.write(bytes([number % 256]) * MIB)
            if number == 3:
                cluster.kill("data-2")
    assert failed.value.errno in (errno.EIO, errno.EROFS)
    assert file.read_bytes() == old
    assert file.stat().st_size == len(old)
    assert other.read() == old
    other.close()
    wait_until(lambda: not writable(mountpoint), 10, "writes are refused")
    done = subprocess.run(["bash", "-c", f"echo new > {file}"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    with pytest.raises(OSError) as refused:
        (mountpoint / "b").write_bytes(b"new")
    assert refused.value.errno == errno.EROFS
    assert [entry.name for entry in mountpoint.iterdir()] == ["a"]
    assert file.read_bytes() == old
    cluster.start("data-2")
    wait_until(lambda: writable(mountpoint), 10, "writes are possible again")
    file.write_bytes(b"new")
    assert file.read_bytes() == b"new"
    with connected(cluster) as client:  # the mount lives on: nothing is left to the end of its session
        client.await_equal_to_committed()


def writable(mountpoint: Path) -> bool:
    try:
        os.close(os.open(mountpoint / "a", os.O_WRONLY))
    except OSError as error:
        assert error.errno == errno.EROFS
        return False
    return True


def test_reads_fail_in_time_without_a_quorum(cluster: LocalCluster, mountpoint: Path) -> None:
    file = mountpoint / "a"
    file.write_bytes(b"1234")
    cluster.kill("data-1")
    os.setxattr(mountpoint, "user.quorumfs.drop_caches", b"")
    assert file.read_bytes() == b"1234"
    cluster.kill("data-2")
    os.setxattr(mountpoint, "user.quorumfs.drop_caches", b"")
    with file.open("rb") as opened:
        with pytest.raises(OSError) as refused:
            opened.read()
        assert refused.value.errno == errno.EIO
        assert b"good" in os.getxattr(file, "user.quorumfs.last_error")
    cluster.start("data-1", "data-2")
    wait_until(lambda: can_read(file), 10, "it can be read again")


def can_read(file: Path) -> bool:
    try:
        return file.read_bytes() == b"1234"
    except OSError:
        return False


def test_who_opens_after_a_close_sees_it(cluster: LocalCluster, mountpoint: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    cluster.mount(second)
    for number in range(60):
        writer, reader = (mountpoint, second) if number % 2 else (second, mountpoint)
        content = f"{number} " * (number + 1)
        match number % 3:
            case 0:
                (writer / "a").write_text(content)
            case 1:
                (writer / "new").write_text(content)
                (writer / "new").rename(writer / "a")
            case _:
                with (writer / "a").open("r+") as file:
                    file.write(content)
                    file.truncate()
        assert (reader / "a").read_text() == content, f"round {number}"
        assert (writer / "a").read_text() == content, f"round {number}"
    (mountpoint / "d").mkdir()
    (mountpoint / "d" / "f").write_text("old")
    assert (second / "d" / "f").read_text() == "old"
    run(mountpoint, "mkdir e && echo -n new > e/f && mv d gone && mv e d")
    assert (second / "d" / "f").read_text() == "new"
    os.link(mountpoint / "d" / "f", mountpoint / "hard")
    assert (second / "hard").read_text() == "new"
    (mountpoint / "hard").write_text("newer")
    assert (second / "d" / "f").read_text() == (second / "hard").read_text() == "newer"


def test_appends_of_two_mounts_one_after_the_other(
    cluster: LocalCluster, mountpoint: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    cluster.mount(second)
    for number in range(40):
        with ((mountpoint, second)[number % 2] / "log").open("a") as log:
            log.write(f"{number}\n")
    for place in (mountpoint, second):
        assert (place / "log").read_text().split() == [str(number) for number in range(40)]


def test_several_threads_write_and_read(cluster: LocalCluster, mountpoint: Path) -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        for turn in range(15):
            data = bytes([number]) * (turn * 50_000 + 1)
            file = mountpoint / f"{number}"
            file.write_bytes(data)
            if file.read_bytes() != data:
                failures.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
