"""`python -m tests.ltp DIR [TEST ...]`: run LTP's tests of files, built in DIR, here and on five servers.

Each is run twice, in a directory of the local disk and in one of a mount, and must end alike: who passes
here has to pass there. Without tests named those of GROUPS are run that are about calls on files and want
no disk or time of their own. Those in DIFFERENT may end otherwise.

The suite is not part of this project; docs/posix.md tells where it comes from and how to build it. Exit
status: 0 all ended alike, 1 not, 2 it cannot be run as asked, with one line that says why.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import unexpected_lines
from tests.programs.mounted import five_servers
from tests.suites import suite_parser, usable_suite
from tests.support import run_as_program

GROUPS = ("syscalls", "dio")
"""Files of its directory runtest, in which each line is a test: its name, and its command."""
MORE_GROUPS = (
    "fs",
    "fs_perms_simple",
    "ltp-aiodio.part1",
    "ltp-aiodio.part2",
    "ltp-aiodio.part3",
    "ltp-aiodio.part4",
)
"""Only for tests that are named: most run for half a minute or more, or are many of a kind."""
ENDLESS = ("dio30",)
"""Not run with its group: its hundred programs write and read for longer than LIMIT_SECONDS."""
CALLS = """
access chdir chmod chown chroot close close_range copy_file_range creat dup dup2 dup3 execve execveat
faccessat faccessat2 fadvise fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
fgetxattr file_attr flistxattr flock fremovexattr fsetxattr fstat fstatat fstatfs fsync ftruncate
futimesat getcwd getdents getxattr inotify io_cancel io_destroy io_getevents io_pgetevents io_setup
io_submit io_uring ioctl landlock lchown lgetxattr link linkat listxattr llistxattr llseek lremovexattr
lseek lsetxattr lstat madvise mincore mkdir mkdirat mknod mknodat mmap mremap msync munmap
name_to_handle_at open openat openat2 open_by_handle_at posix_fadvise pread preadv preadv2 pwrite pwritev
pwritev2 read readahead readdir readlink readlinkat readv removexattr rename renameat renameat2 rmdir
sendfile setfsgid setfsuid setxattr splice stat statfs statvfs statx symlink symlinkat sync
sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
"""
"""Of the directories of testcases/kernel/syscalls these are about files."""
OUT_OF_PLACE = re.compile(
    r"all_filesystems|mount_device|format_device|needs_device|needs_rofs|needs_hugetlbfs|needs_cgroup|fanotify|clock_settime"
)
"""Whose source says so tests no files of the directory that it is run in, or is in the way of others."""
DIFFERENT = {
    "getxattr05": "access control lists are not supported",
    "lseek11": "takes the least hole for a block, in which it leaves a byte; holes end at any byte here",
    "openat03": "O_TMPFILE is not supported",
    "setxattr03": "flags as of chattr are not supported",
}
LIMIT_SECONDS = 300.0


class Test(NamedTuple):
    """One test of the suite."""

    name: str
    command: str


class Outcome(NamedTuple):
    """How it ended: its exit status, None if it did not in LIMIT_SECONDS; what it said, and its seconds."""

    status: int | None
    output: str
    seconds: float


def main() -> int:
    """Run the tests; return the exit status."""
    parser = suite_parser("ltp", "LTP", __doc__)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="as lseek01, or a group as fs")
    arguments = parser.parse_args()
    if (suite := usable_suite("ltp", "LTP", arguments.suite, why_not)) is None:
        return 2
    programs = built_programs(suite)
    chosen = choose(suite, programs, arguments.tests)
    if not chosen:
        print(f"ltp: no test is named {' or '.join(arguments.tests)}, or none of them is built")
        return 2
    with five_servers() as (cluster, mountpoint), gathered(programs) as paths, local_place() as local:
        bad = [test.name for test in chosen if not ends_alike(test, local, mountpoint, paths, suite)]
        unexpected = unexpected_lines(cluster)
    print(f"ltp: {len(chosen)} tests, {len(bad)} ended otherwise{': ' if bad else ''}{' '.join(bad)}")
    print("\n".join(unexpected), end="")
    return 1 if bad or unexpected else 0


def built_programs(suite: Path) -> dict[str, Path]:
    """Return the programs and scripts of the suite by name."""
    places = (suite / "testcases" / "kernel", suite / "testcases" / "lib")
    files = (file for place in places for file in place.rglob("*") if file.is_file())
    return {file.name: file for file in files if os.access(file, os.X_OK) and file.suffix != ".o"}


def choose(suite: Path, programs: dict[str, Path], names: list[str]) -> list[Test]:
    """Return the tests that are named, or those of the groups that are; without names those of GROUPS."""
    chosen = []
    for group in (*GROUPS, *MORE_GROUPS):
        wanted = group in (names or GROUPS)
        for line in (suite / "runtest" / group).read_text().splitlines():
            name, _, command = line.strip().partition(" ")
            if not name or name.startswith("#") or not (name in names or (wanted and name not in ENDLESS)):
                continue
            test = Test(name, command.strip() or name)
            program = programs.get(shlex.split(test.command)[0])
            if program is not None and is_in_place(suite, program):
                chosen.append(test)
    return chosen


def is_in_place(suite: Path, program: Path) -> bool:
    """Tell whether a test is about files, in the directory that it is run in."""
    calls = suite / "testcases" / "kernel" / "syscalls"
    if program.is_relative_to(calls) and program.relative_to(calls).parts[0] not in CALLS.split():
        return False
    source = program.with_name(f"{program.name}.c")
    if not source.exists():
        source = program.with_name(f"{program.name.removesuffix('_64')}.c")
    return not (source.exists() and OUT_OF_PLACE.search(source.read_text(errors="replace")))


@contextmanager
def gathered(programs: dict[str, Path]) -> Iterator[Path]:
    """Yield a directory with links to all programs: tests look for others of them there."""
    with tempfile.TemporaryDirectory(prefix="quorumfs-ltp-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "testcases" / "bin").mkdir(parents=True)
        for program, file in programs.items():
            (place / "testcases" / "bin" / program).symlink_to(file)
        yield place


@contextmanager
def local_place() -> Iterator[Path]:
    """Yield a directory of the local disk that every user may reach."""
    with tempfile.TemporaryDirectory(prefix="quorumfs-ltp-local-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def ends_alike(test: Test, local: Path, mountpoint: Path, paths: Path, suite: Path) -> bool:
    """Run a test in both places, and print how it ended; return whether that is as it has to be."""
    here, there = (run(test, place, paths, suite) for place in (local, mountpoint))
    line = f"{test.name}: here {_ended(here)}, there {_ended(there)}"
    if here.status == there.status:
        print(line, flush=True)
        return True
    if (why := DIFFERENT.get(test.name)) is not None:
        print(f"{line}, as expected: {why}", flush=True)
        return True
    print(f"{line}: OTHERWISE\n{there.output}", flush=True)
    return False


def _ended(outcome: Outcome) -> str:
    return f"{outcome.status} in {outcome.seconds:.1f} s"


def run(test: Test, place: Path, paths: Path, suite: Path) -> Outcome:
    """Run a test in a new directory of a place, which is removed after it."""
    directory = Path(tempfile.mkdtemp(prefix="ltp-", dir=place))
    directory.chmod(0o777)
    words = {"TMPDIR": directory, "TMP": directory, "TMPBASE": directory, "LTPROOT": paths}
    path = f"{paths}/testcases/bin:{suite}/testcases/lib:{os.environ['PATH']}"
    begun = time.monotonic()
    work = subprocess.Popen(
        ["bash", "-c", test.command],
        cwd=directory,
        env={**os.environ, **{key: str(value) for key, value in words.items()}, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    status: int | None = None
    try:
        output, _ = work.communicate(timeout=LIMIT_SECONDS)
        status = work.returncode
    except subprocess.TimeoutExpired:
        os.killpg(work.pid, signal.SIGKILL)
        output, _ = work.communicate()
    seconds = time.monotonic() - begun
    shutil.rmtree(directory, ignore_errors=True)
    return Outcome(status, output.decode(errors="replace"), seconds)


def why_not(suite: Path) -> str | None:
    """Return why the suite cannot be run; None if it can."""
    if not (suite / "runtest" / "syscalls").is_file():
        return f"{suite} is not the top directory of LTP's sources"
    if not os.access(suite / "testcases" / "kernel" / "syscalls" / "lseek" / "lseek01", os.X_OK):
        return f"{suite} is not built (docs/posix.md: how to)"
    if os.geteuid() != 0:
        return "LTP must be run by root: it changes owners and becomes other users"
    return None


if __name__ == "__main__":
    run_as_program(main)
