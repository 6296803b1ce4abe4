"""Directories whose names survive a power loss. Safe in any thread."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are not there; the names of all of them are durable then.

    So is the name of one that is there: who made it may have been killed before that. Raises OSError.
    """
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # one that may not be read cannot be synced either
        sync_directory(path.parent)
