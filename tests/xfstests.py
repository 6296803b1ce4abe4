"""`python -m tests.xfstests DIR [TEST ...]`: run xfstests, built in DIR, on two clusters of five servers.

Without tests named (generic/001 and so on) its group "quick" is run, but for those in EXCLUDED, which test
what this file system says not to have. Nothing in DIR is changed but its results: its settings name
programs (mount, umount, df) for it to call that know the type fuse.quorumfs.

The suite is not part of this project; docs/posix.md tells where it comes from and how to build it. Exit
status: 0 all passed, 1 not, 2 it cannot be run as asked, with one line that says why.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import unexpected_lines
from tests.programs.mounted import five_servers
from tests.suites import suite_parser, usable_suite
from tests.support import ROOT, run_as_program

USERS = ("fsgqa", "fsgqa2", "123456-fsgqa")
EXCLUDED = {
    "generic/003": "access times move by hand only",
    "generic/184": "mounted with nodev: device nodes are kept, and not opened",
    "generic/306": "the same",
    "generic/434": "the same",
    "generic/490": "wants room to be given out in four bytes at least; holes end at any byte here",
    "generic/504": "the kernel lists no locks of FUSE in /proc/locks",
    "generic/568": "fallocate reserves no room",
    "generic/633": "mounted with nosuid",
}

MOUNT = """\
#!/bin/sh
case " $* " in
*" -t fuse.quorumfs "*) PYTHONPATH={root} exec {python} -P -m tools.mount_helper "$@" ;;
esac
exec mount "$@"
"""
UMOUNT = """\
#!/bin/sh
for word; do
    shift
    case $word in
    {source}) word={place} ;;
    {scratch_source}) word={scratch_place} ;;
    esac
    set -- "$@" "$word"
done
exec umount "$@"
"""
DF = """\
#!/bin/sh
df -T -P "$@" | sed s/fuse.quorumfs/fuse/
"""
SETTINGS = """\
export FSTYP=fuse FUSE_SUBTYP=.quorumfs
export TEST_DEV={source} TEST_DIR={place}
export SCRATCH_DEV={scratch_source} SCRATCH_MNT={scratch_place}
export MOUNT_PROG={base}/mount UMOUNT_PROG={base}/umount DF_PROG={base}/df
"""


def main() -> int:
    """Run the suite; return the exit status."""
    parser = suite_parser("xfstests", "xfstests", __doc__)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="as generic/001; none: the group quick")
    arguments = parser.parse_args()
    if (suite := usable_suite("xfstests", "xfstests", arguments.suite, why_not)) is None:
        return 2
    with (
        five_servers() as (cluster, place),
        five_servers() as (scratch, scratch_place),
        tempfile.TemporaryDirectory(prefix="quorumfs-xfstests-") as name,
    ):
        settings = configure(Path(name), (cluster.directory, place), (scratch.directory, scratch_place))
        (excluded := Path(name) / "excluded").write_text("".join(f"{test}\n" for test in EXCLUDED))
        chosen = arguments.tests or ["-g", "quick", "-E", str(excluded)]
        done = subprocess.run(
            ["./check", "-fuse", *chosen],
            cwd=suite,
            env={**os.environ, "HOST_OPTIONS": str(settings)},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        unexpected = [*unexpected_lines(cluster), *unexpected_lines(scratch)]
    print("\n".join(unexpected), end="")
    return 1 if done.returncode or unexpected else 0


def configure(base: Path, tested: tuple[Path, Path], scratch: tuple[Path, Path]) -> Path:
    """Write what the suite needs to know of two clusters; return its configuration file.

    Args:
        base: an empty directory for it.
        tested: the directory of a cluster, and where it is mounted.
        scratch: of the one whose files the suite removes as it likes.
    """
    names = ("source", "place", "scratch_source", "scratch_place")
    words = dict(zip(names, (shlex.quote(str(path)) for path in (*tested, *scratch)), strict=True))
    words |= {"root": shlex.quote(str(ROOT)), "python": shlex.quote(sys.executable), "base": str(base)}
    for program, text in {"mount": MOUNT, "umount": UMOUNT, "df": DF}.items():
        (base / program).write_text(text.format(**words))
        (base / program).chmod(0o755)
    (settings := base / "local.config").write_text(SETTINGS.format(**words))
    return settings


def why_not(suite: Path) -> str | None:
    """Return why the suite cannot be run; None if it can."""
    if not (suite / "tests" / "generic").is_dir():
        return f"{suite} is not the top directory of xfstests' sources"
    if not os.access(suite / "ltp" / "fsstress", os.X_OK):
        return f"{suite} is not built; build it with: make -C {suite} (docs/posix.md: what it needs)"
    if os.geteuid() != 0:
        return "xfstests must be run by root: it mounts, changes owners and becomes other users"
    known = {user.pw_name for user in pwd.getpwall()}
    for user in USERS:
        if user not in known:
            return f"it becomes the user {user}, who does not exist; make it with: useradd {user}"
    return None


if __name__ == "__main__":
    run_as_program(main)
