"""`python -m tests.chaos --minutes 10 [--seed N]`: a real cluster, two mounts under load, and a nemesis.

With `--mounts 1` a mount that is alone, whose rings of changes (decision 31) must then have been used.

Exit status: 0 nothing was lost, wrong or late and everything is whole in the end; 1 something was; 2 it
cannot run here. The timeline, the logs and the directories stay if something was found, or with --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from tests.chaos.nemesis import UnknownKind
from tests.chaos.run import Run
from tests.chaos.summary import is_good, render
from tests.support import run_as_program, take_seed


def main() -> int:
    """Run once; return the exit status."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are staged")
    parser.add_argument(
        "--seed", type=int, default=0, help="of faults and load; drawn and printed if not given"
    )
    parser.add_argument("--mounts", type=int, choices=(1, 2), default=2, help="1: one that is alone")
    parser.add_argument("--kinds", default="", metavar="A,B", help="these faults only, as: kill,cut off")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there as well")
    parser.add_argument(
        "--history", type=Path, metavar="FILE", help="have clients record what they see, and check it"
    )
    parser.add_argument("--keep", action="store_true", help="keep the directory with logs and timeline")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        print("chaos: it must be run by root, with /dev/fuse: it makes mounts, disks and network namespaces")
        return 2
    base = Path(tempfile.mkdtemp(prefix="quorumfs-chaos-"))
    kinds = [kind for kind in arguments.kinds.split(",") if kind]
    seed, seconds = arguments.seed or take_seed(), arguments.minutes * 60
    try:
        summary = Run(base, seed, seconds, kinds, arguments.mounts, arguments.history).run()
    except UnknownKind as error:
        shutil.rmtree(base)
        print(f"chaos: {error}")
        return 2
    except KeyboardInterrupt:
        print(f"ended before its time; timeline and logs so far: {base}")
        raise
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=1) + "\n")
    print(render(summary))
    if is_good(summary) and not arguments.keep:
        shutil.rmtree(base)
    else:
        print(f"timeline and logs: {base}")
    return 0 if is_good(summary) else 1


if __name__ == "__main__":
    run_as_program(main)
