"""A copy of the database in a file of its own: written whole or not at all, and looked at before it is used.

A copy is one file without a log, with checksums in its pages as the database has, and with the fact
"copied_ns". The source may be in use; no file descriptor of our own is opened on it (metaserver.directory
says why). It must not decide what becomes of a copy. Any one thread.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from metaserver import pages
from metaserver.check import DATABASE, Finding, check
from metaserver.offline import refuse_foreign
from metaserver.schema import CONFIGURATION
from wire.config import ConfigError

STEP_PAGES = 100
Watch = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and how much there is."""


class Copy(NamedTuple):
    """A copy that was found whole. `findings` are broken rules of the metadata that it was copied with."""

    copied_ns: int
    size: int
    blocks: int
    inodes: int
    findings: list[Finding]


def unwatched(doing: str, done: int, total: int) -> None:
    """Tell nobody."""


def write(source: sqlite3.Connection, target: Path, copied_ns: int | None, watch: Watch = unwatched) -> None:
    """Copy a database to a new file, durable but for its name. What is at `target` is overwritten.

    Args:
        source: a connection that sees one moment of the database, or to a database that nobody changes.
        target: the copy.
        copied_ns: when the database was as it is copied; None leaves what the source says.
        watch: told how far the work is, in pages; what it raises ends the work.

    Raises:
        sqlite3.Error: the source is damaged, or the disk is full. The target is of no use then.
    """
    for suffix in ("-journal", "-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)  # of a copy that was not finished
    pages.create(target)
    with closing(pages.connect(target)) as made:
        source.backup(
            made,
            pages=STEP_PAGES,
            progress=lambda status, remaining, total: watch("copying", total - remaining, total),
        )
    with closing(pages.connect(target, isolation_level=None)) as made:
        made.execute("PRAGMA journal_mode = DELETE").fetchall()
        made.execute("PRAGMA synchronous = FULL")
        if copied_ns is not None:
            made.execute("INSERT OR REPLACE INTO facts VALUES ('copied_ns', ?)", (str(copied_ns),))
    sync_file(target)


def sync_file(path: Path) -> None:
    """Make a file's contents durable. Not for a database that a connection of this process has open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name(path: Path) -> None:
    """Make a file's name durable."""
    sync_file(path.parent)


def configuration(database: Path) -> str:
    """Return the cluster's configuration file, as it was when a copy (or a stopped database) was served last.

    Raises:
        ConfigError: it cannot be read, or does not have it.
    """
    try:
        pages.refuse_unstamped(database)
        with closing(pages.connect(database, read_only=True)) as connection:
            refuse_foreign(connection, database, "name a backup, meta/ or a data server's directory")
            found = connection.execute("SELECT value FROM facts WHERE name = ?", (CONFIGURATION,)).fetchone()
    except OSError as error:
        raise ConfigError(f"{database}: cannot be read: {error.strerror}") from None
    except sqlite3.Error as error:
        raise ConfigError(f"{database} is damaged or no copy ({error}); use another copy") from None
    if found is None:
        raise ConfigError(f"{database} is of an older release, which kept no configuration; use another copy")
    return str(found[0])


def inspect(copy: Path, cluster: str, watch: Watch = unwatched) -> Copy:
    """Read a whole copy: its pages, its structure, and all rules of the metadata.

    Raises:
        ConfigError: it is damaged, no copy, or of another cluster or format.
    """
    try:
        pages.refuse_unstamped(copy)
        size = copy.stat().st_size
        with closing(pages.connect(copy, read_only=True)) as connection:
            refuse_foreign(connection, copy, "name a copy that `quorumfs backup` made")
            facts = dict(connection.execute("SELECT name, value FROM facts"))
            if facts.get("cluster") != cluster:
                raise ConfigError(
                    f"{copy} is a copy of cluster {facts.get('cluster')!r}, not of this one ({cluster!r})"
                )
            findings = check(connection, watch=watch)
            (blocks,) = connection.execute("SELECT count(*) FROM blocks").fetchone()
            (inodes,) = connection.execute("SELECT count(*) FROM inodes").fetchone()
    except OSError as error:
        raise ConfigError(f"{copy}: cannot be read: {error.strerror}") from None
    except sqlite3.Error as error:
        raise ConfigError(f"{copy} is damaged or no copy ({error}); use another copy") from None
    if broken := [finding for finding in findings if finding.check == DATABASE.name]:
        raise ConfigError(f"{copy} is damaged ({broken[0].row['message']}); use another copy")
    if not facts.get("copied_ns", "").isdigit():
        raise ConfigError(f"{copy} does not say when it was made: it is no copy; `quorumfs backup` makes one")
    return Copy(int(facts["copied_ns"]), size, blocks, inodes, findings)
