"""Files made without a call of the commit, through a real mount: there, whoever is killed at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.kills import judge_files, kill_at_random
from tests.mount.test_alone import GRANT_SECONDS, await_grant, cluster, names
from tests.mount.test_several_mounts import counted_mount
from tools.cluster import LocalCluster
from wire.ring_head import CHANGES, HEAD_READ_BYTES, SHARED_MEMORY, prefix, unpack_head

__all__ = ["cluster"]

FILES = 60


@pytest.fixture
def place(cluster: LocalCluster, tmp_path: Path) -> Path:
    """An empty directory on a mount that is alone."""
    return mounted(cluster, tmp_path / "mnt")


def mounted(cluster: LocalCluster, mountpoint: Path) -> Path:
    """Mount, and return a directory in there when the mount is alone."""
    mountpoint.mkdir(exist_ok=True)
    cluster.mount(mountpoint)
    directory = mountpoint / "d"
    directory.mkdir(exist_ok=True)
    await_grant(cluster)
    return directory


def content(number: int) -> str:
    return f"content of {number}" * number


def make(directory: Path, first: int = 0, last: int = FILES) -> None:
    for number in range(first, last):
        (directory / f"f{number}").write_text(content(number))


def taken(cluster: LocalCluster) -> int:
    """Return how many changes of the ring were carried out."""
    (path,) = SHARED_MEMORY.glob(f"{prefix(cluster.config.metaserver_directory, CHANGES)}*")
    head = unpack_head(path.read_bytes()[:HEAD_READ_BYTES])
    assert head is not None
    return head.taken


def assert_whole(directory: Path, last: int = FILES) -> None:
    assert {f"f{number}" for number in range(last)} <= names(directory)
    for number in range(last):
        assert (directory / f"f{number}").read_text() == content(number)


def elsewhere(cluster: LocalCluster, tmp_path: Path) -> Path:
    """Return the directory as another mount has it."""
    mountpoint = tmp_path / "other"
    mountpoint.mkdir()
    cluster.mount(mountpoint)
    return mountpoint / "d"


def test_most_new_files_are_told(cluster: LocalCluster, place: Path, tmp_path: Path) -> None:
    for turn in range(5):  # on a busy machine a heartbeat may be late, or a file far behind the one before
        before = taken(cluster)
        make(place)
        names(place), (place / "more").mkdir()
        if taken(cluster) - before >= FILES - 3:
            break
        place.rename(place.with_name(f"old-{turn}"))
        place.mkdir()
        await_grant(cluster)
    else:
        raise AssertionError("new files take calls")
    assert_whole(place)
    other = elsewhere(cluster, tmp_path)
    assert_whole(other)
    for number in range(FILES):
        here, there = (place / f"f{number}").stat(), (other / f"f{number}").stat()
        for field in ("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_nlink", "st_blocks"):
            assert getattr(here, field) == getattr(there, field), field


def test_empty_ones_too(cluster: LocalCluster, place: Path, tmp_path: Path) -> None:
    for number in range(FILES):
        (place / f"f{number}").touch()
    (place / "f0").write_text("no more")
    other = elsewhere(cluster, tmp_path)
    assert names(other) == {f"f{number}" for number in range(FILES)}
    assert [path.stat().st_size for path in sorted(other.iterdir())] == [7] + [0] * (FILES - 1)


def test_a_mount_that_is_killed_at_once_loses_none(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    (mount,) = cluster.mount_names()
    make(place)
    cluster.kill(mount)
    assert_whole(elsewhere(cluster, tmp_path))


def test_a_metadata_server_that_is_killed_at_once_loses_none(cluster: LocalCluster, place: Path) -> None:
    make(place)
    cluster.kill("metaserver")
    cluster.restart("metaserver")
    assert_whole(place)


def made_beside(cluster: LocalCluster, directory: Path) -> bool:
    """Make files while the metadata server is stopped; return False if one of them waited for it."""
    maker = threading.Thread(target=make, args=(directory, 1, 10))
    make(directory, 0, 1)
    cluster.pause("metaserver")
    maker.start()
    maker.join(1.0)
    if maker.is_alive():
        cluster.resume("metaserver")
        maker.join()
        return False
    return True


def test_all_that_are_killed_at_once_lose_none(cluster: LocalCluster, place: Path, tmp_path: Path) -> None:
    (mount,) = cluster.mount_names()
    for turn in range(5):  # on a busy machine the second may be far behind the first
        if made_beside(cluster, place):
            break
        place.rename(place.with_name(f"old-{turn}"))
        place.mkdir()
        await_grant(cluster)
    else:
        raise AssertionError("new files wait for the metadata server")
    for name in (mount, "mediator", "metaserver"):
        cluster.kill(name)
    for name in ("metaserver", "mediator"):
        cluster.restart(name)
    assert_whole(elsewhere(cluster, tmp_path), last=10)


def test_what_a_server_lacks_is_filled_when_it_is_back(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    made = make_cluster(servers=3, read_quorum=3, write_quorum=1, alone_seconds=GRANT_SECONDS)
    made.start()
    place = mounted(made, tmp_path / "mnt")
    make(place, last=20)
    made.kill("data-3")
    make(place, 20, 40)
    made.restart("data-3")
    make(place, 40, 60)
    other = elsewhere(made, tmp_path)
    assert_whole(other)  # by the votes of all three


def test_unpacking_takes_no_calls_for_times_owners_and_modes(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    for number in range(FILES):
        (source / f"f{number}").chmod(0o600 + number % 8)
        os.utime(source / f"f{number}", (number, 10**9 + number))
    subprocess.run(["tar", "-cf", tmp_path / "tar", "-C", source, "."], check=True)
    with counted_mount(cluster, tmp_path, monkeypatch) as (mountpoint, proxy):
        await_grant(cluster)
        for turn in range(5):  # on a busy machine a heartbeat may be late
            place = mountpoint / f"d{turn}"
            place.mkdir()
            proxy.calls.clear()
            subprocess.run(["tar", "-xf", tmp_path / "tar", "-C", place], check=True)
            if proxy.calls["setattr"] <= 3 and proxy.calls["write_file"] <= FILES + 3:
                break
        assert proxy.calls["setattr"] <= 3 and proxy.calls["write_file"] <= FILES + 3, proxy.calls
        assert_whole(place)
        there = tmp_path / "there"
        there.mkdir()
        cluster.mount(there)
        for number in range(FILES):
            name = f"f{number}"
            kept, here, other = ((each / name).stat() for each in (source, place, there / place.name))
            for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
                assert getattr(kept, field) == getattr(here, field) == getattr(other, field), field
            assert (here.st_atime_ns, here.st_ctime_ns) == (other.st_atime_ns, other.st_ctime_ns)


def test_it_works_by_xml_alone(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    made = make_cluster(**SMALL, alone_seconds=GRANT_SECONDS, rpc="xml")
    made.start()
    place = mounted(made, tmp_path / "mnt")
    before = taken(made)
    make(place)
    assert_whole(place)
    (place / "more").mkdir()
    assert taken(made) > before
    assert_whole(elsewhere(made, tmp_path))


MAKER = """
import os, sys
for number in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}/f{number}", "w") as file:
        file.write(f"content of {number}" * number)
    os.write(1, b".")
"""
"""It says of each file that it is closed, once it was told so."""


def prepare(cluster: LocalCluster, mountpoint: Path) -> list[Any]:
    return [sys.executable, "-c", MAKER, mounted(cluster, mountpoint), str(FILES)]


def judge(mountpoint: Path, made: int) -> str:
    return judge_files(mountpoint / "d", [content(number) for number in range(FILES)], made)


def test_kills_at_any_moment_lose_none(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    kill_at_random(make_cluster, tmp_path, 3, prepare, judge, 0.1)


@pytest.mark.long
def test_many_kills_at_any_moment_lose_none(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    kill_at_random(make_cluster, tmp_path, 12, prepare, judge, 0.1)


def test_what_is_open_without_a_name_lives_until_it_is_closed(cluster: LocalCluster, place: Path) -> None:
    """As temporary files: the server hears of the file and of its end at once."""
    opened = []
    for number in range(FILES):
        file = os.open(place / f"f{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if number % 2:
            os.write(file, content(number).encode())
        (place / f"f{number}").unlink()
        opened.append(file)
    assert names(place) == set()
    for number, file in enumerate(opened):
        os.pwrite(file, b"and more", 4096)
        os.fsync(file)
        expected = (content(number).encode() if number % 2 else b"").ljust(4096, b"\0") + b"and more"
        found = os.fstat(file)
        assert (found.st_nlink, found.st_size) == (0, len(expected))
        assert os.pread(file, 2 * len(expected), 0) == expected
        os.close(file)
