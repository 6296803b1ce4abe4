"""`python -m tests.posix DIR`: run pjdfstest, built in DIR, on a new cluster of five servers.

Further words on the command line are for prove (-v, -j 2).

The suite is not part of this project; docs/posix.md tells where it comes from and how to build it. Exit
status: 0 all passed, 1 not, 2 it cannot be run as asked, with one line that says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import unexpected_lines
from tests.programs.mounted import five_servers

PROGRAMS = ("prove", "openssl")


def main() -> int:
    """Run the suite; return the exit status."""
    if len(sys.argv) < 2:
        print("posix: say where pjdfstest is: make posix PJDFSTEST=DIR (docs/posix.md: how to get it)")
        return 2
    suite = Path(sys.argv[1]).resolve()
    if (reason := why_not(suite)) is not None:
        print(f"posix: {reason}")
        return 2
    with five_servers() as (cluster, mountpoint):
        place = mountpoint / "pjdfstest"
        place.mkdir(mode=0o755)
        done = subprocess.run(
            ["prove", "-r", *sys.argv[2:], str(suite / "tests")],
            cwd=place,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        unexpected = unexpected_lines(cluster)
    print("\n".join(unexpected), end="")
    return 1 if done.returncode or unexpected else 0


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
    sys.exit(main())
