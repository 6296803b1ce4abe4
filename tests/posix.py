"""`python -m tests.posix DIR [--kill-every SECONDS]`: run pjdfstest, built in DIR, on five servers.

With --kill-every a data server, each in turn, is killed that often and restarted 5 s later, with Qw=4.
Further words on the command line are for prove (-v, -j 2).

The suite is not part of this project; docs/posix.md tells where it comes from and how to build it. Exit
status: 0 all passed, 1 not, 2 it cannot be run as asked, with one line that says why.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import unexpected_lines
from tests.programs.mounted import five_servers
from tests.suites import suite_parser, usable_suite
from tests.support import run_as_program
from tools.cluster import LocalCluster

PROGRAMS = ("prove", "openssl")
DOWN_SECONDS = 5.0
"""So long a server that was killed stays down."""


def main() -> int:
    """Run the suite; return the exit status."""
    parser = suite_parser("posix", "pjdfstest", __doc__)
    parser.add_argument(
        "--kill-every", type=float, default=0.0, metavar="SECONDS", help="0: nothing is killed"
    )
    arguments, for_prove = parser.parse_known_args()
    if (suite := usable_suite("posix", "pjdfstest", arguments.suite, why_not)) is None:
        return 2
    write_quorum = 4 if arguments.kill_every else 5
    with five_servers(write_quorum) as (cluster, mountpoint), killing(cluster, arguments.kill_every):
        place = mountpoint / "pjdfstest"
        place.mkdir(mode=0o755)
        done = subprocess.run(
            ["prove", "-r", *for_prove, str(suite / "tests")],
            cwd=place,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        unexpected = unexpected_lines(cluster)
    print("\n".join(unexpected), end="")
    return 1 if done.returncode or unexpected else 0


@contextmanager
def killing(cluster: LocalCluster, every_seconds: float) -> Iterator[None]:
    """Kill and restart the data servers in turn while the block runs; print how often. 0: do nothing."""
    ended, count = threading.Event(), 0

    def kill_in_turn() -> None:
        nonlocal count
        names = itertools.cycle(name for name in cluster.server_names if name.startswith("data-"))
        while not ended.wait(every_seconds - DOWN_SECONDS):
            name = next(names)
            cluster.kill(name)
            count += 1
            ended.wait(DOWN_SECONDS)
            cluster.start(name)

    thread = threading.Thread(target=kill_in_turn, name="killing")
    if not every_seconds:
        yield
        return
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print(f"posix: {count} times a data server was killed and restarted")


def why_not(suite: Path) -> str | None:
    """Return why the suite cannot be run; None if it can."""
    if not (suite / "tests" / "conf").is_file():
        return f"{suite} is not the top directory of pjdfstest's sources"
    if not os.access(suite / "pjdfstest", os.X_OK):
        build = f"cd {suite} && autoreconf -ifs && ./configure && make pjdfstest"
        return f"{suite}/pjdfstest is not built; build it with: {build}"
    if os.geteuid() != 0:
        return "pjdfstest must be run by root: it changes owners and becomes other users"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is missing; install it with: apt-get install perl openssl"
    return None


if __name__ == "__main__":
    run_as_program(main)
