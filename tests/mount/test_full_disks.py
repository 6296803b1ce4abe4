"""Disks that really fill up: small file systems as the servers' directories, filled through a mount."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory, SmallDisk
from tests.support import take_seed, wait_until
from tools.cluster import LocalCluster
from tools.status import take

MIB = 1024 * 1024
SECONDS = 30.0
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


@pytest.fixture
def whole(small_disk: SmallDisk, whole: None) -> None:
    """The disks go after the check that what lies on them is whole."""


@pytest.fixture
def cluster(small_disk: SmallDisk, make_cluster: ClusterFactory) -> LocalCluster:
    """A cluster of three that is not started, with a small reserve."""
    return make_cluster(
        servers=3, read_quorum=2, write_quorum=3, reserve_bytes=MIB, garbage_grace_seconds=0.2
    )


def dd(place: Path, mebibytes: int) -> subprocess.CompletedProcess[str]:
    """Write random bytes with dd, durably."""
    words = ["dd", "if=/dev/urandom", f"of={place}", "bs=1M", f"count={mebibytes}", "conv=fsync"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def fill(mountpoint: Path, size: int, most: int) -> dict[str, bytes]:
    """Write random files, each durable, until one is refused; return those that were acknowledged."""
    choice, kept = random.Random(take_seed()), {}
    for number in range(most):
        name, data = f"file-{number}", choice.randbytes(size)
        try:
            write(mountpoint / name, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return kept
        kept[name] = data
    raise AssertionError(f"{most} files of {size} bytes fit")


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def assert_content(mountpoint: Path, kept: dict[str, bytes]) -> None:
    os.setxattr(mountpoint, "user.quorumfs.drop_caches", b"")
    for name, data in kept.items():
        assert (mountpoint / name).read_bytes() == data, name


def error_of_write(path: Path, data: bytes) -> str:
    with pytest.raises(OSError) as refused:
        write(path, data)
    return errno.errorcode[refused.value.errno or 0]


def has_room_for(path: Path, data: bytes) -> bool:
    """Write a file unless the disks are full; what was deleted leaves them a moment later."""
    try:
        write(path, data)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True


def test_full_data_servers(cluster: LocalCluster, small_disk: SmallDisk, mountpoint: Path) -> None:
    for number in (1, 2, 3):
        small_disk(cluster.directory / f"data-{number}", (12 + number) * MIB)
    cluster.start()
    cluster.mount(mountpoint)
    write(mountpoint / "first", b"first" * 1000)
    # One file that does not fit: it is refused whole, and what it had taken is free again.
    refused = dd(mountpoint / "too large", 40)
    assert refused.returncode == 1, refused
    assert "No space left on device" in refused.stderr
    wait_until(lambda: not (mountpoint / "too large").exists(), SECONDS, "the empty file is taken back")
    wait_until(lambda: can_write(mountpoint / "first"), SECONDS, "the room is free again")
    kept = fill(mountpoint, MIB, 40)
    assert len(kept) >= 8, "the room of the file that was refused is not free again"
    kept["first"] = b"again"
    assert_content(mountpoint, kept)
    # A write to an old file is refused, and leaves the old content.
    wait_until(lambda: error_of_write(mountpoint / "first", bytes(MIB)) == "ENOSPC", SECONDS, "it is full")
    assert_content(mountpoint, kept)
    wait_until(lambda: not take(cluster).health.writable, SECONDS, "the status tells that it is full")
    health = take(cluster).health
    assert health.word == "degraded"
    assert "no room is left" in health.reason
    # Names still come and go, and deleting frees the room.
    (mountpoint / "directory").mkdir()
    (mountpoint / "directory").rmdir()
    for name in list(kept)[:4]:
        (mountpoint / name).unlink()
        del kept[name]
    for number in range(3):
        data = os.urandom(MIB)
        again = mountpoint / f"again-{number}"
        wait_until(lambda: has_room_for(again, data), SECONDS, "the room is free again")  # noqa: B023
        kept[f"again-{number}"] = data
    assert_content(mountpoint, kept)
    wait_until(lambda: take(cluster).health.writable, SECONDS, "the status tells that there is room")


def test_one_full_server_among_three(
    make_cluster: ClusterFactory, small_disk: SmallDisk, mountpoint: Path
) -> None:
    cluster = make_cluster(
        servers=3, read_quorum=2, write_quorum=2, reserve_bytes=MIB, garbage_grace_seconds=0.2
    )
    small_disk(cluster.directory / "data-2", 8 * MIB)
    cluster.start()
    cluster.mount(mountpoint)
    assert dd(mountpoint / "large", 20).returncode == 0
    data = (mountpoint / "large").read_bytes()
    assert_content(mountpoint, {"large": data})
    # What the full server lacks comes to it when it has room again.
    write(mountpoint / "small", b"small")
    os.truncate(mountpoint / "large", 4 * MIB)
    assert_content(mountpoint, {"large": data[: 4 * MIB], "small": b"small"})


def test_a_full_metadata_server(cluster: LocalCluster, small_disk: SmallDisk, mountpoint: Path) -> None:
    small_disk(cluster.directory / "meta", 4 * MIB)
    cluster.start()
    cluster.mount(mountpoint)
    made = 0
    with pytest.raises(OSError) as refused:
        for made in range(100_000):
            (mountpoint / f"link-{made}").symlink_to("x" * 1000)
    assert refused.value.errno == errno.ENOSPC
    assert made > 100
    assert take(cluster).health[:2] == ("degraded", False)
    # Somebody else takes the reserve as well: SQLite itself meets the end of the disk, half-way.
    take_all_room(cluster.directory / "meta" / "strange")
    links = {mountpoint / f"link-{number}" for number in range(made)}
    assert set(mountpoint.iterdir()) == links
    for link in links:
        link.unlink()
    assert list(mountpoint.iterdir()) == []
    (cluster.directory / "meta" / "strange").unlink()
    wait_until(lambda: can_write(mountpoint / "again"), SECONDS, "files can be made again")
    assert_content(mountpoint, {"again": b"again"})


def take_all_room(strange: Path) -> None:
    """Fill the disk to its last byte with what is none of ours."""
    with strange.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_servers_start_on_disks_without_a_byte_of_room(
    cluster: LocalCluster, small_disk: SmallDisk, mountpoint: Path, end: str
) -> None:
    names = ("metaserver", "data-1", "data-2", "data-3")
    places = [cluster.directory / name.replace("metaserver", "meta") for name in names]
    for place in places:
        small_disk(place, 16 * MIB)
    cluster.start()
    cluster.mount(mountpoint)
    kept = {f"file-{number}": os.urandom(MIB) for number in range(3)}
    for name, data in kept.items():
        write(mountpoint / name, data)
    for place in places:
        take_all_room(place / "strange")
    for name in names:
        cluster.kill(name) if end == "kill" else cluster.stop(name)
    for place in places:
        take_all_room(place / "stranger")
    cluster.start(*names)
    assert_content(mountpoint, kept)
    (mountpoint / "file-0").unlink()
    del kept["file-0"]
    assert_content(mountpoint, kept)
    for place in places:
        (place / "strange").unlink()
    wait_until(lambda: can_write(mountpoint / "again"), SECONDS, "files can be made again")
    assert_content(mountpoint, kept | {"again": b"again"})


def can_write(path: Path) -> bool:
    try:
        write(path, b"again")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True
