"""A mount that is the only session: what it spares, and that nobody ever sees anything old of it."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.test_several_mounts import counted_mount
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.methods import CommonMethods

GRANT_SECONDS = 2.5


@pytest.fixture
def cluster(make_cluster: ClusterFactory) -> LocalCluster:
    made = make_cluster(**SMALL, alone_seconds=GRANT_SECONDS)
    made.start()
    return made


def await_grant(cluster: LocalCluster) -> None:
    client = BlockingClient([cluster.address("metaserver")])
    try:
        wait_until(
            lambda: client.call(5.0, CommonMethods.status)["alone_seconds_left"] > GRANT_SECONDS / 2,
            20,
            "the mount is told to be alone",
        )
    finally:
        client.close()
    time.sleep(0.1)  # the answer is on its way


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def fill(place: Path) -> None:
    (place / "d").mkdir()
    for number in range(30):
        (place / "d" / f"f{number}").write_text("old")


def test_what_is_known_needs_no_call(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_mount(cluster, tmp_path, monkeypatch) as (place, proxy):
        fill(place)
        await_grant(cluster)
        assert len(names(place / "d")) == 30
        proxy.calls.clear()
        listing = subprocess.run(["ls", "-l", place / "d"], check=True, capture_output=True)
        assert listing.stdout.count(b"\n") == 31
        for number in range(30):
            assert (place / "d" / f"f{number}").stat().st_size == 3
            assert not (place / "d" / f"g{number}").exists()
        assert proxy.calls["resolve"] == proxy.calls["getattr"] == 0, proxy.calls
        assert proxy.calls["get_xattr"] <= 2, "ls asks for the label of the directory, not of each file"
        proxy.calls.clear()
        for number in range(30):
            (place / "d" / f"g{number}").touch()
            (place / "d" / f"f{number}").unlink()
        assert proxy.calls["resolve"] == proxy.calls["getattr"] == 0, proxy.calls


def test_a_second_mount_sees_all_and_is_seen(cluster: LocalCluster, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    cluster.mount(first)
    fill(first)
    await_grant(cluster)
    subprocess.run(["ls", "-l", first / "d"], check=True, capture_output=True)
    cluster.mount(second)
    assert names(second / "d") == names(first / "d")
    for number in range(10):
        (second / "d" / f"f{number}").write_text("new bytes")
        assert (first / "d" / f"f{number}").read_text() == "new bytes"
        (first / "d" / f"f{number}").write_text("newer")
        assert (second / "d" / f"f{number}").read_text() == "newer"
    (second / "d" / "f0").rename(second / "d" / "g0")
    (second / "d" / "f1").unlink()
    wait_until(lambda: not (first / "d" / "f1").exists() and (first / "d" / "g0").exists(), 2, "it is seen")


def test_a_mount_that_was_stopped_answers_nothing_old(cluster: LocalCluster, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    name = cluster.mount(first)
    fill(first)
    await_grant(cluster)
    subprocess.run(["ls", "-l", first / "d"], check=True, capture_output=True)
    for number in range(30):
        (first / "d" / f"f{number}").read_text()
        (first / "d" / f"g{number}").exists()
    cluster.pause(name)
    began = time.monotonic()
    cluster.mount(second)
    assert time.monotonic() - began < GRANT_SECONDS + 5
    for number in range(10):
        (second / "d" / f"f{number}").write_text("new bytes")
        (second / "d" / f"f{number}").chmod(0o600)
        (second / "d" / f"f{10 + number}").unlink()
        (second / "d" / f"f{20 + number}").rename(second / "d" / f"g{number}")
    cluster.resume(name)
    for number in range(10):
        status = (first / "d" / f"f{number}").stat()
        assert (status.st_size, status.st_mode & 0o777) == (9, 0o600)
        assert not (first / "d" / f"f{10 + number}").exists()
        assert not (first / "d" / f"f{20 + number}").exists()
        assert (first / "d" / f"g{number}").read_text() == "old"
        assert (first / "d" / f"f{number}").read_text() == "new bytes"
    assert names(first / "d") == names(second / "d")


def test_its_own_changes_are_seen_at_once(cluster: LocalCluster, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    cluster.mount(place)
    await_grant(cluster)
    a, b, d = place / "a", place / "b", place / "d"
    for turn in range(20):
        before = time.time_ns()
        assert not a.exists()
        a.write_text("one")
        assert (a.stat().st_size, a.stat().st_nlink, a.stat().st_blocks > 0) == (3, 1, True)
        b.hardlink_to(a)
        assert a.stat().st_nlink == b.stat().st_nlink == 2
        with a.open("a") as file:
            file.write("two")
            file.flush()
            assert b.stat().st_size == 6
        assert b.stat().st_size == 6 and b.stat().st_mtime_ns >= before
        os.truncate(b, 4)
        assert a.stat().st_size == 4
        b.chmod(0o4755)
        assert stat.S_IMODE(a.stat().st_mode) == 0o4755
        os.chown(a, 7, 8)
        assert (b.stat().st_uid, stat.S_IMODE(b.stat().st_mode)) == (7, 0o755)
        os.utime(a, ns=(turn, turn))
        assert b.stat().st_mtime_ns == turn
        links = place.stat().st_nlink
        d.mkdir()
        assert place.stat().st_nlink == links + 1
        changed = d.stat().st_mtime_ns
        a.rename(d / "a")
        assert d.stat().st_mtime_ns > changed and not a.exists() and (d / "a").stat().st_nlink == 2
        with b.open() as file:
            b.unlink()
            assert os.fstat(file.fileno()).st_nlink == (d / "a").stat().st_nlink == 1
            b.write_text("other")
            b.rename(d / "a")
            assert os.fstat(file.fileno()).st_nlink == 0
            assert (d / "a").stat().st_size == 5 and not b.exists()
        (d / "a").unlink()
        assert not names(d)
        d.rmdir()
        assert place.stat().st_nlink == links and not d.exists()
