"""What the runners of suites share that are not in this tree: each is told where its suite is, built.

docs/posix.md says where they come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def suite_parser(program: str, suite: str, description: str | None) -> argparse.ArgumentParser:
    """Return a command line's parser that takes a suite's directory first."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("suite", nargs="?", type=Path, metavar="DIR", help=f"the sources of {suite}, built")
    return parser


def usable_suite(
    program: str, suite: str, given: Path | None, why_not: Callable[[Path], str | None]
) -> Path | None:
    """Return the directory of a suite; None, having printed why, if it cannot be run.

    Args:
        program: the runner, and the target of make.
        suite: what the suite is called; in capitals, the variable of make that names its directory.
        given: the directory that the command line names.
        why_not: tells why the suite there cannot be run, None if it can.
    """
    if given is None:
        reason: str | None = (
            f"say where {suite} is: make {program} {suite.upper()}=DIR (docs/posix.md: how to get it)"
        )
    elif (reason := why_not(given.resolve())) is None:
        return given.resolve()
    print(f"{program}: {reason}")
    return None
