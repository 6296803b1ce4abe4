"""What the kernel has mounted where, and whether something can be mounted: /proc and /dev/fuse.

It never looks into a mount point that may be quorumfs, so that a mount whose servers are down cannot
block it. Safe in any thread.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from tools.processes import ClusterError, command_of, user_of
from wire.config import ConfigError

FUSE_DEVICE = Path("/dev/fuse")
MOUNTS_FILE = Path("/proc/self/mountinfo")
TYPE = "fuse.quorumfs"
LINKS_MAX = 40
UNMOUNT_SECONDS = 40.0
PASSING_SECONDS = 2.0
"""A mount is busy for a moment while somebody looks at all mounts, as df and monitors do."""
LOOK_SECONDS = 0.05


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo: where, of which type, its source, of FUSE whose it is, and how."""

    place: Path
    type: str
    source: str
    user: int | None = None
    options: tuple[str, ...] = ()


def mounts(file: Path | None = None) -> list[Mount]:
    """Return all mounts that this process sees, in the order in which they were made: proc(5).

    Of another process, `file` tells its own: /proc/PID/mountinfo. Raises OSError: it has ended.
    """
    found = []
    # Of what ends a line elsewhere (CR, FF and so on), the kernel escapes the newline alone.
    for line in os.fsdecode((file or MOUNTS_FILE).read_bytes()).rstrip("\n").split("\n"):
        left, _, right = line.partition(" - ")
        kind, source, options = right.split(" ", 2)
        user = re.search(r"\buser_id=(\d+)", options) if kind.startswith("fuse") else None
        words = left.split(" ")
        owner, of_all = None if user is None else int(user[1]), tuple(f"{words[5]},{options}".split(","))
        found.append(Mount(Path(_unescape(words[4])), kind, _unescape(source), owner, of_all))
    return found


def mount_at(place: Path) -> Mount | None:
    """Return what is mounted exactly there (the last, if several are stacked)."""
    return next((mount for mount in reversed(mounts()) if mount.place == place), None)


def refuse_elsewhere(name: str, pid: int | None, place: Path | None) -> None:
    """Raise ClusterError if a process has its mount in another mount namespace: nothing here unmounts it."""
    if pid is None or place is None or not _is_mounted_elsewhere(pid, place):
        return
    there = shlex.join(["nsenter", "-t", str(pid), "-m", "umount", str(place)])
    raise ClusterError(
        f"{name} is mounted on {place} in another mount namespace, that of process {pid}; unmount it there, "
        f"as with `{there}`, or use --force"
    )


def _is_mounted_elsewhere(pid: int, place: Path) -> bool:
    try:
        if Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink():
            return False
        seen = mounts(Path(f"/proc/{pid}/mountinfo"))
    except OSError:  # it has ended, or is another user's
        return False
    return any(mount.place == place and mount.type == TYPE for mount in seen)


def mount_of(path: Path) -> Mount | None:
    """Return the FUSE mount that an absolute path lies on, if it lies on one."""
    holding = file_system_of(path)
    return holding if holding is not None and holding.type.partition(".")[0] == "fuse" else None


def file_system_of(path: Path) -> Mount | None:
    """Return the mount, of whatever type, that an absolute path lies on."""
    holding = [mount for mount in mounts() if path.is_relative_to(mount.place)]
    return max(reversed(holding), key=lambda mount: len(mount.place.parts), default=None)


def absolute(path: Path) -> Path:
    """Make a mount point's path absolute without looking at the mount point itself."""
    path = Path(os.path.normpath(Path.cwd() / path))
    return path.parent.resolve() / path.name


def place_of(path: Path) -> Path:
    """Return where the kernel mounts what is mounted on `path`: absolute, symbolic links followed.

    What is mounted there is not asked: it is no symbolic link, and the kernel knows.
    """
    path = absolute(path)
    for _ in range(LINKS_MAX):
        try:
            path = absolute(path.parent / path.readlink())
        except OSError:
            break
    return path


def config_of_mount(path: Path) -> Path | None:
    """Return the configuration file of the mount that an absolute path lies on, from its process.

    That is one of the user who mounted it: any other may have one that looks the same.
    """
    mount = mount_of(path)
    if mount is None:
        return None
    for process in Path("/proc").iterdir():
        words = command_of(int(process.name)) if process.name.isdigit() else []
        looks_right = "fusefs" in words and "--config" in words and words[-1] == str(mount.place)
        if looks_right and user_of(int(process.name)) == mount.user:
            return Path(words[words.index("--config") + 1])
    return None


def check_mountpoint(place: Path) -> None:
    """Raise ConfigError unless something can be mounted on `place` (absolute) by this user."""
    if mount_at(place) is not None:
        raise ConfigError(f"{place}: something is mounted there already; unmount it or choose another place")
    if not place.exists():
        make = f"mkdir {shlex.quote(str(place))}"
        raise ConfigError(f"{place}: this mount point does not exist; make it with: {make}")
    if not place.is_dir():
        raise ConfigError(f"{place}: this mount point is no directory; choose an empty directory")
    if any(place.iterdir()):
        raise ConfigError(f"{place}: this mount point is not empty; choose an empty directory")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{place}: you may not write to this mount point; choose a directory of your own")


def check_fuse() -> None:
    """Raise ConfigError unless this user can mount FUSE file systems on this machine."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR))
    except OSError as error:
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"{FUSE_DEVICE} may not be opened by this user; as root: chmod 666 {FUSE_DEVICE}"
            ) from None
        raise ConfigError(
            f"{FUSE_DEVICE} cannot be opened ({error.strerror}); as root: modprobe fuse, and in a container "
            f"start it with --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
        ) from None
    if unmount_command() is None:
        raise ConfigError("fusermount3 is not installed; install it with: apt-get install fuse3")


def unmount_command() -> str | None:
    """Return the program that unmounts for ordinary users, or None if it is not installed."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def unmount(place: Path, *, lazy: bool = False) -> None:
    """Unmount `place`; with `lazy` even while it is in use (it vanishes when its last user ends).

    Raises:
        ClusterError: it is in use (the message names by whom), or cannot be unmounted.
    """
    command = unmount_command()
    if command is None:
        raise ClusterError("fusermount3 is not installed; install it with: apt-get install fuse3")
    words = [command, "-u", *(["-z"] if lazy else []), str(place)]
    end = time.monotonic() + PASSING_SECONDS
    while (said := _try_to_unmount(words, place)) is not None:
        if users := users_of(place):
            raise ClusterError(
                f"{place} is in use by {', '.join(users[:5])}; end or leave these first, or use --force"
            )
        if "busy" not in said or time.monotonic() > end:
            raise ClusterError(f"{place} cannot be unmounted: {said}")
        time.sleep(LOOK_SECONDS)


def _try_to_unmount(words: list[str], place: Path) -> str | None:
    """Run a command that unmounts `place`; return what it said if that is mounted still, else None."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UNMOUNT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{place} was not unmounted within {UNMOUNT_SECONDS:g} s; try --force") from None
    if done.returncode == 0 or mount_at(place) is None:
        return None
    return done.stderr.strip() or f"exit status {done.returncode}"


def users_of(place: Path) -> list[str]:
    """Return "name (pid)" of the other processes with a working directory or an open file below `place`."""
    found = []
    for process in Path("/proc").iterdir():
        another = process.name.isdigit() and process.name != str(os.getpid())
        if another and any(_below(place, link) for link in _links(process)):
            found.append(f"{_name(process)} ({process.name})")
    return found


def _links(process: Path) -> list[Path]:
    try:
        return [process / "cwd", *(process / "fd").iterdir()]
    except OSError:
        return [process / "cwd"]


def _below(place: Path, link: Path) -> bool:
    try:
        return link.readlink().is_relative_to(place)
    except OSError:
        return False


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
