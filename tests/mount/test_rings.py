"""Files removed without a call, through a real mount: gone for everybody, whoever is killed at once."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from metaserver import offline
from tests.chaos import metadata
from tests.chaos.metadata import MetadataDamage
from tests.cluster.test_given_blocks_process import mounted
from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.kills import kill_at_random
from tests.mount.test_alone import await_grant, cluster, names
from tests.mount.test_several_mounts import counted_mount
from tests.support import run_command, wait_until
from tools.cluster import LocalCluster
from tools.health import await_writable
from wire.ring_head import CHANGES, SHARED_MEMORY, prefix

__all__ = ["cluster"]

FILES = 60


@pytest.fixture
def place(cluster: LocalCluster, tmp_path: Path) -> Path:
    """A directory of files on a mount that is alone."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    cluster.mount(mountpoint)
    return filled(cluster, mountpoint)


def filled(cluster: LocalCluster, mountpoint: Path) -> Path:
    directory = mountpoint / "d"
    directory.mkdir()
    for number in range(FILES):
        (directory / f"f{number}").write_text(f"content of {number}")
    await_grant(cluster)
    return directory


def remove(directory: Path, *, keep: int = 0) -> None:
    for number in range(keep, FILES):
        (directory / f"f{number}").unlink()


def another_mount(cluster: LocalCluster, tmp_path: Path) -> Path:
    mountpoint = tmp_path / "other"
    mountpoint.mkdir()
    cluster.mount(mountpoint)
    return mountpoint / "d"


def test_most_removals_take_no_call(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_mount(cluster, tmp_path, monkeypatch) as (mountpoint, proxy):
        for _ in range(5):  # on a busy machine a heartbeat may be late, or a removal far behind the last
            directory = filled(cluster, mountpoint)
            proxy.calls.clear()
            remove(directory)
            assert names(directory) == set()
            directory.rmdir()
            if proxy.calls["unlink"] <= 3:
                break
        assert proxy.calls["unlink"] <= 3, proxy.calls


def test_what_is_removed_is_gone_for_the_next_mount(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    remove(place, keep=10)
    assert names(another_mount(cluster, tmp_path)) == {f"f{number}" for number in range(10)}
    assert names(place) == {f"f{number}" for number in range(10)}
    for number in range(10):
        assert (place / f"f{number}").read_text() == f"content of {number}"


def test_a_mount_that_is_killed_at_once_loses_none(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    (mount,) = cluster.mount_names()
    remove(place)
    cluster.kill(mount)
    assert names(another_mount(cluster, tmp_path)) == set()


def test_a_metadata_server_that_is_killed_at_once_loses_none(cluster: LocalCluster, place: Path) -> None:
    remove(place)
    cluster.kill("metaserver")
    cluster.restart("metaserver")
    wait_until(lambda: names(place) == set(), 20, "the listing is the server's")


def removed_beside(cluster: LocalCluster, directory: Path) -> bool:
    """Remove all while the metadata server is stopped; return False if one of them waited for it."""
    remover = threading.Thread(target=remove, args=(directory,), kwargs={"keep": 1})
    (directory / "f0").unlink()
    cluster.pause("metaserver")
    remover.start()
    remover.join(1.0)
    if remover.is_alive():
        cluster.resume("metaserver")
        remover.join()
        return False
    return True


def remove_beside(cluster: LocalCluster, directory: Path) -> None:
    """Remove all while the metadata server is stopped, which it stays."""
    for _ in range(5):  # on a busy machine the second may be far behind the first
        if removed_beside(cluster, directory):
            return
        directory.rmdir()
        filled(cluster, directory.parent)
    raise AssertionError("removals wait for the metadata server")


def test_all_that_are_killed_at_once_lose_none(cluster: LocalCluster, place: Path, tmp_path: Path) -> None:
    (mount,) = cluster.mount_names()
    remove_beside(cluster, place)
    for name in (mount, "mediator", "metaserver"):
        cluster.kill(name)
    for name in ("metaserver", "mediator"):
        cluster.restart(name)
    assert names(another_mount(cluster, tmp_path)) == set()


def test_a_metadata_disk_that_is_mounted_again_with_another_number_loses_none(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster, mountpoint = make_cluster(**SMALL), tmp_path / "mnt"
    mountpoint.mkdir()
    place = cluster.config.metaserver_directory
    with mounted(tmp_path / "disk", place):
        cluster.start()
        cluster.mount(mountpoint)
        remove_beside(cluster, filled(cluster, mountpoint))
        for name in (*cluster.mount_names(), "mediator", "metaserver"):
            cluster.kill(name)
        device = place.stat().st_dev
    with mounted(tmp_path / "more", tmp_path / "elsewhere"), mounted(tmp_path / "disk", place):
        assert place.stat().st_dev != device
        for name in ("metaserver", "mediator"):
            cluster.restart(name)
        assert names(another_mount(cluster, tmp_path)) == set()
        cluster.stop()


def test_no_copy_of_a_killed_servers_database_lacks_what_was_told(
    cluster: LocalCluster, place: Path, tmp_path: Path
) -> None:
    """It was copied without a word, and all that had been removed was back after a restore."""
    remove_beside(cluster, place)
    for name in (*cluster.mount_names(), "mediator", "metaserver"):
        cluster.kill(name)
    copy, state = tmp_path / "copy", str(cluster.directory)
    said = run_command(tmp_path, "backup", str(copy), "--state", state)
    assert said.returncode == 1
    assert re.search(rf"lacks the last \d+ changes.*quorumfs up --state {state}", said.stderr), said.stderr
    assert not copy.exists()
    incomplete = tmp_path / "incomplete"
    assert run_command(tmp_path, "backup", str(incomplete), "--incomplete", "--state", state).returncode == 0
    cluster.start()
    assert names(another_mount(cluster, tmp_path)) == set()
    for name in (*cluster.mount_names(), "mediator", "metaserver"):
        cluster.kill(name)
    assert run_command(tmp_path, "backup", str(copy), "--state", state).returncode == 0


def test_chaos_copies_the_metadata_with_all_that_was_told(
    cluster: LocalCluster, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_beside(cluster, place)
    copied = []

    def run(_damage: MetadataDamage, *words: str) -> list[str]:
        if words[0] == "backup":
            with offline.opened(cluster.config.metaserver_directory, cluster.config.cluster) as connection:
                names_there = connection.execute("SELECT name FROM entries").fetchall()
                copied.extend(name for (name,) in names_there if name.startswith(b"f"))
        return []

    monkeypatch.setattr(MetadataDamage, "_run", run)
    monkeypatch.setattr(MetadataDamage, "_is_refused", lambda _damage: True)
    monkeypatch.setattr(metadata, "spoil", lambda *_: "left")
    threading.Timer(0.5, cluster.resume, ["metaserver"]).start()
    assert MetadataDamage(cluster, 1.0, tmp_path / "backup").restore() == ("left, refused", [])
    assert not copied
    cluster.start()
    await_writable(cluster)
    assert names(place) == set()


REMOVER = """
import os, sys
for number in range(int(sys.argv[2])):
    os.unlink(f"{sys.argv[1]}/f{number}")
    os.write(1, b".")
"""
"""It says of each name that it is removed, once it was told so."""


def prepare(cluster: LocalCluster, mountpoint: Path) -> list[Any]:
    cluster.mount(mountpoint)
    return [sys.executable, "-c", REMOVER, filled(cluster, mountpoint), str(FILES)]


def judge(mountpoint: Path, removed: int) -> str:
    left = names(mountpoint / "d")
    for name in left:
        (mountpoint / "d" / name).unlink()
    (mountpoint / "d").rmdir()
    back = left & {f"f{number}" for number in range(removed)}
    return f"{removed} were removed, and {sorted(back)} are back" if back else ""


def test_kills_at_any_moment_lose_none(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    kill_at_random(make_cluster, tmp_path, 3, prepare, judge, 0.03)


@pytest.mark.long
def test_many_kills_at_any_moment_lose_none(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    kill_at_random(make_cluster, tmp_path, 12, prepare, judge, 0.03)


def test_a_removed_file_that_is_open_is_read_to_its_end(place: Path) -> None:
    with (place / "f7").open("r+") as file:
        remove(place)
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read() == "content of 7"
        file.write(", and more")
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == "content of 7, and more"
    assert names(place) == set()


def test_names_are_used_again_at_once(place: Path) -> None:
    for turn in range(3):
        for number in range(FILES):
            (place / f"f{number}").unlink()
            (place / f"f{number}").write_text(f"turn {turn} of {number}")
    for number in range(FILES):
        assert (place / f"f{number}").read_text() == f"turn 2 of {number}"
        (place / f"f{number}").rename(place / f"g{number}")
    for number in range(FILES):
        (place / f"g{number}").unlink()
    assert names(place) == set()


def test_its_directory_has_one_time_for_all(cluster: LocalCluster, place: Path, tmp_path: Path) -> None:
    remove(place, keep=1)
    here = place.stat()
    there = another_mount(cluster, tmp_path).stat()
    assert (here.st_mtime_ns, here.st_ctime_ns) == (there.st_mtime_ns, there.st_ctime_ns)


def test_without_the_grant_all_take_calls(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    lonely = make_cluster(**SMALL, alone_seconds=0.0)
    lonely.start()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    lonely.mount(mountpoint)
    for number in range(5):
        (mountpoint / f"f{number}").touch()
    for number in range(5):
        (mountpoint / f"f{number}").unlink()
    assert names(mountpoint) == set()
    assert not list(SHARED_MEMORY.glob(f"{prefix(lonely.config.metaserver_directory, CHANGES)}*"))
