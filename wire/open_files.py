"""How many files and connections a process may have open at once. Safe in any thread."""

from __future__ import annotations

import resource


def allow_open_files() -> None:
    """Have as many as this process may: most systems let a program have 1024 unless it asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def most_open_files() -> int:
    """Return how many this process can have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit
