"""The same basics on each binding and each encoding, and what is refused before anything is mounted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.work import everyday_work, large_file, listing, names_of_all_kinds
from tests.support import ROOT, wait_until
from tools.mounts import mount_at


@pytest.mark.parametrize(("binding", "rpc"), [("fusepy", "msgpack"), ("mfusepy", "xml")])
def test_basics(make_cluster: ClusterFactory, mountpoint: Path, binding: str, rpc: str) -> None:
    cluster = make_cluster(**SMALL, rpc=rpc)
    cluster.start()
    name = cluster.mount(mountpoint, "--binding", binding)
    everyday_work(mountpoint)
    (mountpoint / "names").mkdir()
    names_of_all_kinds(mountpoint / "names")
    large_file(mountpoint, 5)
    cluster.unmount(name)
    cluster.mount(mountpoint, "--binding", binding)
    assert listing(mountpoint) == ["a.txt", "names", "soft"]


def test_libfuse_2_appends_to_a_file_that_was_just_made(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    """Also behind what another mount has appended, of which the kernel does not know."""
    cluster = make_cluster(**SMALL)
    cluster.start()
    places = tmp_path / "first", tmp_path / "second"
    for place in places:
        place.mkdir()
        cluster.mount(place, "--binding", "fusepy")
    file = os.open(places[0] / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
    os.write(file, b"one ")
    os.fsync(file)
    with (places[1] / "log").open("ab") as other:
        other.write(b"two ")
    os.write(file, b"three")
    os.close(file)
    assert [(place / "log").read_bytes() for place in places] == [b"one two three"] * 2


def test_sigterm_unmounts_and_loses_nothing(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    cluster = make_cluster(**SMALL)
    cluster.start()
    name = cluster.mount(mountpoint)
    file = os.open(mountpoint / "a", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"x" * 3_000_000)
    process = cluster.process(name)
    process.signal(signal.SIGTERM)
    assert process.wait(20)
    assert mount_at(mountpoint) is None
    with pytest.raises(OSError, match="not connected"):
        os.close(file)
    cluster.unmount(name)
    cluster.mount(mountpoint)
    assert (mountpoint / "a").read_bytes() == b"x" * 3_000_000


def refused(config: Path, mountpoint: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fusefs", "--config", str(config), *words, str(mountpoint)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_cannot_be_mounted(make_cluster: ClusterFactory, mountpoint: Path, tmp_path: Path) -> None:
    cluster = make_cluster(**SMALL)
    config = cluster.config_file
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "mkdir" in refused(config, tmp_path / "nowhere")
    assert "not a directory" in refused(config, tmp_path / "file")
    assert "not empty" in refused(config, tmp_path / "full")
    assert "no such configuration" in refused(tmp_path / "no.toml", mountpoint)
    cluster.start()
    cluster.mount(mountpoint)
    assert "mounted there already" in refused(config, mountpoint)


def test_without_a_cluster_it_says_so(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    cluster = make_cluster(**SMALL)
    assert "quorumfs up" in refused(cluster.config_file, mountpoint)
    wait_until(lambda: mount_at(mountpoint) is None, 1, "nothing is mounted")
