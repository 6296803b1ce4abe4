"""What mount(8) runs for the type fuse.quorumfs, as from /etc/fstab, once it is linked into /sbin.

`mount.fuse.quorumfs DIRECTORY MOUNTPOINT -o OPTIONS` mounts the cluster whose configuration lies in a
directory, as `quorumfs mount` does. It parses and translates, and decides nothing. Exit status as mount(8)
has it: 0 mounted, 1 called wrongly, 32 not mounted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from tools import cli, mounts

BAD_USAGE = 1
NOT_MOUNTED = 32

ALWAYS = {"nosuid", "nodev", "default_permissions"}
"""What each mount of this kind is."""
HARMLESS = {
    "defaults",
    "rw",
    "exec",
    "async",
    "noatime",
    "relatime",
    "nodiratime",
    "allow_other",
    "_netdev",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
}
"""What changes nothing, or is heeded by who reads /etc/fstab."""
FOR_OTHERS = ("x-", "X-", "comment=")
"""How options begin that are meant for other programs, such as systemd."""
REMOUNT = "remount"
WAIT = re.compile(r"wait=\d{1,4}")
"""For how many seconds a cluster that is starting is waited for: its machines boot in any order."""
TRANSLATED = {"ro": "--read-only", "noexec": "--no-exec", "nosupervise": "--no-supervise"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount, and return mount(8)'s exit status."""
    parsed = _parse(arguments)
    options = [option for part in parsed.options for option in part.split(",") if option]
    in_force = _options_of(parsed.mountpoint) if REMOUNT in options else ()  # mount(8) tells them, too
    unknown = [each for each in options if not (_is_known(each) or each in in_force)]
    if unknown and not parsed.sloppy:
        known = ", ".join(sorted([*TRANSLATED, "wait=SECONDS"]))
        print(f"mount.fuse.quorumfs: unknown option {unknown[0]}: it has {known}", file=sys.stderr)
        return BAD_USAGE
    if parsed.fake:
        return 0
    if REMOUNT in options:
        return _remount(parsed.mountpoint, options)
    words = ["mount", str(parsed.mountpoint), "--state", str(parsed.source)]
    words += dict.fromkeys(TRANSLATED[option] for option in options if option in TRANSLATED)
    words += [f"--{option}" for option in options if WAIT.fullmatch(option)]
    with redirect_stdout(StringIO()):  # a mount that works says nothing
        return NOT_MOUNTED if cli.main(words) else 0


def _remount(mountpoint: Path, options: Sequence[str]) -> int:
    """Change what the kernel refuses on a mount; mount(8) does it, without asking this helper again.

    It has told the helper all options that are to hold, and keeps those itself whose opposite it is not told.
    """
    wanted = [REMOUNT, "ro" if "ro" in options else "rw", "noexec" if "noexec" in options else "exec"]
    return subprocess.run(["mount", "-i", "-o", ",".join(wanted), mountpoint], check=False).returncode


def _options_of(mountpoint: Path) -> tuple[str, ...]:
    """Return what is said of a mount by its kernel, and how a mount is told to change."""
    found = mounts.mount_at(mounts.place_of(mountpoint))
    return (REMOUNT, *(found.options if found else ()))


def _is_known(option: str) -> bool:
    is_one_of = option in ALWAYS | HARMLESS | TRANSLATED.keys()
    return is_one_of or bool(WAIT.fullmatch(option)) or option.startswith(FOR_OTHERS)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mount.fuse.quorumfs", description="Mount a running quorumfs cluster; called by mount(8)."
    )
    parser.add_argument("source", type=Path, help="the directory with the cluster's cluster.toml")
    parser.add_argument("mountpoint", type=Path, help="an empty directory")
    parser.add_argument("-o", dest="options", action="append", default=[], help="options, parted by commas")
    parser.add_argument("-f", dest="fake", action="store_true", help="do all but the mounting")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-n", "-v", dest="_", action="store_true", help="change nothing here")
    parser.add_argument("-t", dest="_type", help="the type, as mount(8) was told it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
