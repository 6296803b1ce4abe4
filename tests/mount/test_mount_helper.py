"""What mount(8) and /etc/fstab have: a type of its own, read-only mounts, and a source that df(1) shows."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.support import ROOT, run_command
from tools import mount_helper, mounts
from tools.cluster import LocalCluster

SECONDS = 60
SINGLE = {"servers": 1, "read_quorum": 1, "write_quorum": 1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A running cluster whose directory has a name that is hard to tell libfuse."""
    base = tmp_path_factory.mktemp("helper")
    with LocalCluster.create(base / r"a, b\c=d", **SINGLE) as made:
        made.start()
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "mnt"
    made.mkdir()
    return made


def in_a_namespace(script: str, **words: Path) -> str:
    """Run a shell script in a mount namespace of its own, and return what it prints.

    There, /usr/sbin has nothing but the helper, as after linking it there.
    """
    helper = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m tools.mount_helper "$@"\n'
    begin = (
        "set -e; mount -t tmpfs none /usr/sbin\n"
        "printf '%s' \"$HELPER\" > /usr/sbin/mount.fuse.quorumfs; chmod +x /usr/sbin/mount.fuse.quorumfs\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", begin + script],
        env={**os.environ, "HELPER": helper, **{name: str(word) for name, word in words.items()}},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done
    return done.stdout


def test_mount_8_mounts_it_by_its_type(cluster: LocalCluster, place: Path) -> None:
    said = in_a_namespace(
        'mount -t fuse.quorumfs "$SOURCE" "$PLACE"\n'
        'echo 1234 > "$PLACE/a.txt"; cat "$PLACE/a.txt"\n'
        'findmnt --noheadings --raw --output FSTYPE "$PLACE"\n'
        'df --output=source "$PLACE" | tail -n 1\n'
        'umount "$PLACE"\n',
        SOURCE=cluster.directory,
        PLACE=place,
    )
    assert said.splitlines() == ["1234", "fuse.quorumfs", str(cluster.directory)]


def test_a_line_of_fstab_is_enough_and_is_mounted_once(cluster: LocalCluster, place: Path) -> None:
    escaped = str(cluster.directory).replace("\\", r"\134").replace(" ", r"\040")
    line = f"{escaped} {place} fuse.quorumfs ro,noexec,nofail,_netdev,x-systemd.automount 0 0\n"
    said = in_a_namespace(
        'printf "%s" "$LINE" > "$PLACE.fstab"\n'
        'mount --all --fstab "$PLACE.fstab"; mount --all --fstab "$PLACE.fstab"\n'
        'findmnt --noheadings --raw --output OPTIONS "$PLACE"\n'
        '(echo no > "$PLACE/b.txt") 2>&1 || true\n'
        'umount "$PLACE"\n',
        LINE=Path(line),
        PLACE=place,
    )
    options, refused = said.splitlines()
    assert {"ro", "noexec"} < set(options.split(","))
    assert "Read-only file system" in refused


def test_a_mount_is_made_read_only_and_writable_again(cluster: LocalCluster, place: Path) -> None:
    said = in_a_namespace(
        'mount -t fuse.quorumfs "$SOURCE" "$PLACE"\n'
        'mount -t fuse.quorumfs -o remount,ro "$SOURCE" "$PLACE"\n'
        '(echo no > "$PLACE/c.txt") 2>&1 || true\n'
        'mount -o remount,rw "$PLACE"\n'
        'echo yes > "$PLACE/c.txt"; cat "$PLACE/c.txt"\n'
        'umount "$PLACE"\n',
        SOURCE=cluster.directory,
        PLACE=place,
    )
    refused, written = said.splitlines()
    assert "Read-only file system" in refused
    assert written == "yes"


def test_a_change_that_is_unknown_is_refused(cluster: LocalCluster, place: Path) -> None:
    """It was ignored; those that mount(8) and the kernel have added by themselves are none."""
    said = in_a_namespace(
        'mount -t fuse.quorumfs "$SOURCE" "$PLACE"\n'
        'mount -i -o remount,sync "$PLACE"\n'
        'for change in bogus ro,bogus; do mount -o "remount,$change" "$PLACE" 2>&1 || echo "$?"; done\n'
        'mount -o remount,ro "$PLACE"; findmnt --noheadings --raw --output OPTIONS "$PLACE"\n'
        'umount "$PLACE"\n',
        SOURCE=cluster.directory,
        PLACE=place,
    )
    *refused, options = said.splitlines()
    unknown = "mount.fuse.quorumfs: unknown option bogus: it has noexec, nosupervise, ro, wait=SECONDS"
    assert refused == [unknown, "1"] * 2
    assert options.startswith("ro,")


def test_programs_may_be_run_again(cluster: LocalCluster, place: Path) -> None:
    said = in_a_namespace(
        'mount -t fuse.quorumfs -o noexec "$SOURCE" "$PLACE"\n'
        'for change in ro exec rw,noexec; do mount -o "remount,$change" "$PLACE"\n'
        'findmnt --noheadings --raw --output OPTIONS "$PLACE"; done\n'
        'umount "$PLACE"\n',
        SOURCE=cluster.directory,
        PLACE=place,
    )
    looked_at = {"ro", "rw", "exec", "noexec", "nosuid", "nodev"}
    assert [set(line.split(",")) & looked_at for line in said.splitlines()] == [
        {"ro", "noexec", "nosuid", "nodev"},
        {"ro", "nosuid", "nodev"},
        {"rw", "noexec", "nosuid", "nodev"},
    ]


def test_a_read_only_mount_reads_and_refuses_changes(cluster: LocalCluster, place: Path) -> None:
    name = cluster.mount(place)
    (place / "kept.txt").write_text("1234\n")
    cluster.unmount(name)
    done = run_command(place.parent, "mount", "mnt", "--read-only", "--state", str(cluster.directory))
    assert done.returncode == 0, done
    try:
        assert (place / "kept.txt").read_text() == "1234\n"
        for change in (lambda: (place / "kept.txt").write_text(""), (place / "new").mkdir):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno == errno.EROFS
    finally:
        assert run_command(place.parent, "umount", "mnt", "--state", str(cluster.directory)).returncode == 0


def test_the_source_is_the_directory_of_the_cluster(cluster: LocalCluster, place: Path) -> None:
    name = cluster.mount(place)
    mount = mounts.mount_at(place)
    assert mount is not None
    assert (mount.type, mount.source) == (mounts.TYPE, str(cluster.directory))
    cluster.unmount(name)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["-o", "rw,sync"], mount_helper.BAD_USAGE, "unknown option sync"),
        (["-o", "suid"], mount_helper.BAD_USAGE, "unknown option suid"),
        (["-o", "sync", "-s", "-f"], 0, ""),
        (["-o", "rw,noatime,x-systemd.requires=a.service", "-n", "-v", "-f"], 0, ""),
        (["-o", "remount,ro", "-f"], 0, ""),
        (["-o", "remount,wait=300", "-f"], 0, ""),
        (["-o", "wait=long"], mount_helper.BAD_USAGE, "unknown option wait=long"),
        (["-o", "wait=1e9"], mount_helper.BAD_USAGE, "unknown option wait=1e9"),
        (["-o", "remount,bogus", "-f"], mount_helper.BAD_USAGE, "unknown option bogus"),
        (["-o", "rw"], mount_helper.NOT_MOUNTED, "cluster.toml"),
    ],
)
def test_what_it_is_told_and_tells(
    options: list[str], status: int, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount_helper.main([str(place.parent / "none"), str(place), *options]) == status
    assert said in capsys.readouterr().err


def test_a_mount_waits_for_a_cluster_that_starts_after_it(make_cluster: ClusterFactory, place: Path) -> None:
    """As where the machine with the metadata server is the last to boot."""
    cluster = make_cluster(**SINGLE)
    cluster.start()
    cluster.stop()
    mounting = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "tools.mount_helper",
            str(cluster.directory),
            str(place),
            "-o",
            "wait=300",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert mounting.stderr is not None
        assert "waiting for the metadata server, 300 s at most" in mounting.stderr.readline()
        cluster.start("mediator")
        assert mounting.poll() is None
        cluster.start()
        assert mounting.wait(SECONDS) == 0
        (place / "a.txt").write_text("1234")
    finally:
        mounting.kill()
        mounting.communicate()
        run_command(place.parent, "umount", "--state", str(cluster.directory))


def test_a_mount_does_not_wait_for_ever(make_cluster: ClusterFactory, place: Path) -> None:
    cluster = make_cluster(**SINGLE)
    words = ["mount", str(place), "--wait", "0.1", "--state", str(cluster.directory)]
    done = run_command(place.parent, *words)
    assert done.returncode == 2
    waiting, failed = done.stderr.splitlines()
    assert waiting.endswith("0.1 s at most")
    assert "the mediator is down" in failed
    words[words.index("0.1")] = "-1"
    assert "--wait" in run_command(place.parent, *words).stderr
