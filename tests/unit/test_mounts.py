"""What can be mounted where, from /proc alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import mounts
from tools.mounts import Mount
from tools.processes import ClusterError
from wire.config import ConfigError


def test_the_kernels_own_mounts_are_seen() -> None:
    assert mounts.mount_at(Path("/proc")) is not None
    assert mounts.mount_at(Path("/proc/self")) is None
    assert mounts.mount_of(Path("/proc/self/status")) is None, "it is no quorumfs"


def test_the_deepest_mount_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Mount(Path("/"), "ext4", "/dev/sda1"),
        Mount(Path("/a"), "fuse.quorumfs", "quorumfs"),
        Mount(Path("/a/b"), "tmpfs", "tmpfs"),
        Mount(Path("/c"), "tmpfs", "tmpfs"),
        Mount(Path("/c"), "fuse.quorumfs", "quorumfs"),
    ]
    monkeypatch.setattr(mounts, "mounts", lambda: made)
    found = {path: mounts.mount_of(Path(path)) for path in ("/x", "/a", "/a/x", "/a/b/x", "/ab", "/c/x")}
    assert {path: mount and str(mount.place) for path, mount in found.items()} == {
        "/x": None,
        "/a": "/a",
        "/a/x": "/a",
        "/a/b/x": None,
        "/ab": None,
        "/c/x": "/c",
    }


def test_names_with_spaces_are_unescaped() -> None:
    assert mounts._unescape(r"/a\040b\134c") == "/a b\\c"


def test_the_kernel_escapes_few_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "26 25 0:9 / /a\rb\x85c\u2028 rw - fuse.quorumfs quorumfs rw,user_id=7,x=0\n"
        "27 25 0:9 / /d\\040e\\012 rw shared:1 - tmpfs  rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTS_FILE", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").write_bytes(lines.encode())
    assert mounts.mounts() == [
        Mount(Path("/"), "ext4", "/dev/sda1", None, ("rw", "rw")),
        Mount(Path("/a\rb\x85c\u2028"), "fuse.quorumfs", "quorumfs", 7, ("rw", "rw", "user_id=7", "x=0")),
        Mount(Path("/d e\n"), "tmpfs", "", None, ("rw", "rw")),
    ]


def test_a_mount_point_is_checked(tmp_path: Path) -> None:
    mounts.check_mountpoint(tmp_path)
    (tmp_path / "file").touch()
    for place, word in (
        (tmp_path, "not empty"),
        (tmp_path / "file", "no directory"),
        (tmp_path / "x", "mkdir"),
    ):
        with pytest.raises(ConfigError, match=word):
            mounts.check_mountpoint(place)


def test_a_mount_point_is_made_absolute_without_following_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounts.absolute(tmp_path / "link" / "mnt") == tmp_path / "real" / "mnt"
    assert mounts.absolute(tmp_path / "real" / ".." / "link") == tmp_path / "link"


def test_users_of_a_directory_are_named(tmp_path: Path) -> None:
    assert mounts.users_of(tmp_path) == []
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as sleeper, (tmp_path / "file").open("w"):
        try:
            assert mounts.users_of(tmp_path) == [f"sleep ({sleeper.pid})"]
        finally:
            sleeper.kill()


def test_links_to_a_mount_point_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "other").symlink_to(tmp_path / "real" / "mnt")
    (tmp_path / "ring").symlink_to("ring")
    assert mounts.place_of(tmp_path / "link") == tmp_path / "real" / "mnt"
    assert mounts.place_of(tmp_path / "ring") == tmp_path / "ring"


UNMOUNTER = """#!/bin/sh
echo "$@" >> tried
test $(wc -l < tried) -gt {failures} && exit 0
echo "fusermount3: failed to unmount $2: {reason}" >&2
exit 1
"""


def try_to_unmount(place: Path, monkeypatch: pytest.MonkeyPatch, failures: int, reason: str) -> int:
    """Unmount by a command that fails so often; return how often it ran."""
    command = place / "fusermount3"
    command.write_text(UNMOUNTER.format(failures=failures, reason=reason))
    command.chmod(0o755)
    monkeypatch.chdir(place)
    monkeypatch.setattr(mounts, "unmount_command", lambda: str(command))
    monkeypatch.setattr(mounts, "mount_at", lambda _: Mount(place, "fuse.quorumfs", "quorumfs"))
    monkeypatch.setattr(mounts, "users_of", lambda _: [])
    monkeypatch.setattr(mounts, "PASSING_SECONDS", 0.3 if failures > 5 else 20.0)
    try:
        mounts.unmount(place)
    finally:
        tries = len((place / "tried").read_text().splitlines())
    return tries


def test_a_mount_that_is_busy_for_a_moment_is_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert try_to_unmount(tmp_path, monkeypatch, 3, "Device or resource busy") == 4


@pytest.mark.parametrize("reason", ["Device or resource busy", "Operation not permitted"])
def test_a_mount_that_stays_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    with pytest.raises(ClusterError, match=f"cannot be unmounted: .*{reason}"):
        try_to_unmount(tmp_path, monkeypatch, 1000, reason)
    tries = len((tmp_path / "tried").read_text().splitlines())
    assert (tries > 1) == ("busy" in reason)
