"""`python -m tests.fault_sweep [--part NAME] [--update docs/reliability.md]`: one fault at a time.

Parts: *files* (of a data server's directory), *messages*, *disks* (calls that
fail), *metadata* (the database's pages and log). A cell has the worst
outcome of what was tried (tests.fault_sweep.outcomes). Exit status 1 if anything was wrong, lost or hung.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.fault_sweep import disks, files, messages, metadata
from tests.fault_sweep.outcomes import BAD, Cell, put_into, render
from tests.support import run_as_program

PARTS = {
    "files": ("file", files.sweep),
    "messages": ("link", messages.sweep),
    "disks": ("what", disks.sweep),
    "metadata": ("file", metadata.sweep),
}


def main() -> int:
    """Run the parts; return the exit status."""
    parser = argparse.ArgumentParser(prog="fault_sweep", description=__doc__)
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the tables into this page")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part")
    arguments = parser.parse_args()
    bad = 0
    for part in arguments.part or PARTS:
        rows, sweep = PARTS[part]
        outcomes: dict[Cell, str] = {}
        with tempfile.TemporaryDirectory(prefix="quorumfs-sweep-") as name:
            begun = time.monotonic()
            for cell, outcome in sweep(Path(name)):
                outcomes[cell] = outcome
                print(f"{time.monotonic() - begun:.0f} s:", *cell, outcome, flush=True)
        table = render(outcomes, rows)
        print(table, flush=True)
        if arguments.update:
            put_into(arguments.update, f"fault-sweep {part}", table)
        bad += sum(outcome in BAD for outcome in outcomes.values())
    return int(bool(bad))


if __name__ == "__main__":
    run_as_program(main)
