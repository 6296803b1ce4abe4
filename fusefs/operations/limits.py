"""How long a request of the kernel may take in all, by what it may have to wait for (promise P7). Pure."""

from __future__ import annotations

from wire.config import Deadlines

COMMITTING = frozenset(
    {"write", "flush", "release", "fsync", "fsyncdir", "setattr", "truncate", "fallocate", "lseek"}
)
"""Blocks are put, then committed; then it may be asked what the file is now."""
LOCKING = frozenset({"setlk", "flock"})
"""What was written is committed first."""
READING = frozenset({"read"})
"""The map of the file is asked for, then blocks."""


def limit_seconds(operation: str, deadlines: Deadlines) -> float:
    """Return how long an operation, by libfuse's name, may take; each of its calls has a deadline as well."""
    seconds = deadlines.metadata_seconds
    if operation in COMMITTING:
        return seconds + 2 * deadlines.write_seconds
    if operation in LOCKING:
        return seconds + deadlines.write_seconds
    if operation in READING:
        return seconds + deadlines.read_seconds
    return seconds
