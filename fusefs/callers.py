"""Who makes a request: the user and the groups of a program. Decides nothing; safe in any thread.

Source: proc_pid_status(5)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PROCESSES = Path("/proc")


class Caller(NamedTuple):
    """A program's user, its first group, and the thread that asks (0: it is not told)."""

    uid: int
    gid: int
    thread: int

    def is_in(self, gid: int) -> bool:
        """Tell whether it is in a group. Of a thread that has ended only the first one is known."""
        return gid == self.gid or gid in groups_of(self.thread)


ROOT = Caller(0, 0, 0)


def groups_of(thread: int) -> set[int]:
    """Return the supplementary groups of a thread; none if it is not there."""
    try:
        lines = (PROCESSES / str(thread) / "status").read_bytes().splitlines()
    except OSError:
        return set()
    found = (line for line in lines if line.startswith(b"Groups:"))
    return {int(group) for group in next(found, b"Groups:").split()[1:]}
