"""`python -m tests.fault_sweep.failing_dataserver ...`: the data server, with a disk that fails when told to.

The modules that touch the disk get another `os`; the rest is the real process. What fails is told by a file
beside the server's directory, looked at before each call. A disk that is told to stall fails nothing: one
call takes STALL_SECONDS, as on a disk that others keep busy.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataserver import __main__, durable, quarantine, segment

CALLS = {"read": ("pread", "preadv"), "write": ("pwrite",), "sync": ("fsync", "fdatasync")}
FAULTS = ("read EIO", "write EIO", "write ENOSPC", "sync EIO", "sync ENOSPC")
STALLS = ("read stall", "write stall", "sync stall")
STALL_SECONDS = 6.5


def fault_file(directory: Path, number: int) -> Path:
    """Return the file that says what the disk of a data server fails."""
    return directory / f"data-{number}.fault"


class FailingOs(types.SimpleNamespace):
    """Stands for the module `os`."""

    def __init__(self, told: Path) -> None:
        super().__init__(**{call: self._failing(call, told) for calls in CALLS.values() for call in calls})

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def _failing(call: str, told: Path) -> Callable[..., Any]:
        usual = getattr(os, call)

        def fail_or_call(*values: Any) -> Any:
            try:
                kind, name = told.read_text().split()
            except (FileNotFoundError, ValueError):
                return usual(*values)
            if call in CALLS[kind] and name == "stall":
                told.unlink(missing_ok=True)
                time.sleep(STALL_SECONDS)
            elif call in CALLS[kind]:
                number = getattr(errno, name)
                raise OSError(number, os.strerror(number))
            return usual(*values)

        return fail_or_call


def main() -> int:
    """Run the data server. Returns the exit status."""
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    number = int(sys.argv[sys.argv.index("--number") + 1])
    failing = FailingOs(fault_file(config.parent, number))
    for module in (durable, quarantine, segment):
        module.os = failing  # type: ignore[attr-defined]
    return __main__.main()


if __name__ == "__main__":
    sys.exit(main())
