"""Directories whose names survive a power loss. Safe in any thread."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from wire.config import ConfigError

IDENTITY_NAME = "server.json"
"""The file in a server's directory that tells whose it is: the cluster, and which of its servers."""
DATABASE_PATH_BYTES = 504
"""SQLite has room for paths of 512 bytes, with a suffix as "-journal": https://www.sqlite.org/vfs.html."""


def refuse_too_long(database: Path) -> None:
    """Raise ConfigError for a path that SQLite cannot open a database at, as it would only say that."""
    length = len(os.fsencode(database.resolve()))
    if length > DATABASE_PATH_BYTES:
        raise ConfigError(
            f"the path of {database.name} in {database.parent} is {length} bytes long, and a database can "
            f"have {DATABASE_PATH_BYTES} at most; choose a shorter one"
        )


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
