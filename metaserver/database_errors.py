"""What an error of SQLite means, and what a caller is told of it. Changes nothing; safe in any thread."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from metaserver import pages
from wire.errors import InternalError, InvalidArgument, NoSpace, QuorumfsError

logger = logging.getLogger("metaserver")


def is_full(error: sqlite3.Error) -> bool:
    """Tell whether an error says that there is no room: for a file, or for the memory that it shares."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def is_disk_failure(error: sqlite3.Error | OverflowError) -> bool:
    """Tell whether an error says that the disk takes nothing, though it is neither full nor damaged."""
    code = getattr(error, "sqlite_errorcode", 0)
    failed = code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    return failed and code not in (pages.DAMAGED, sqlite3.SQLITE_IOERR_SHMSIZE)


def told(error: sqlite3.Error | OverflowError, path: Path) -> QuorumfsError:
    """Return what the caller is told of an error of the database; log what is the server's own trouble."""
    if isinstance(error, OverflowError):
        return InvalidArgument("a number does not fit 64 bits")
    if is_full(error):
        return NoSpace("the metadata server's disk is full")
    if pages.is_damage(error):
        damaged = pages.damaged_pages(path)
        logger.error("what was asked for is in a damaged part of %s (%s; pages %s)", path, error, damaged)
        return InternalError(
            "the metadata database is damaged where this is stored; see `quorumfs status` of the metadata "
            "server and its log for the pages, and put it back with `quorumfs restore` or `quorumfs rebuild`"
        )
    logger.error("the database failed: %s (%s)", error, getattr(error, "sqlite_errorname", "no code"))
    return InternalError(f"the metadata server's database failed: {error}")
