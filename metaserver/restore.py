"""A stopped metadata server's database put back from a copy, behind a fence.

Crash-safe: the new database is made beside the old one; one rename decides; what comes after it is finished
by whoever claims the directory next (metaserver.directory). The old database is moved aside, not deleted, and
can be put back in turn, from `copy_aside`. It must not run beside a server: the directory's lock sees to it.
One thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from metaserver import copies, fence, offline, pages
from metaserver.directory import (
    DATABASE_NAME,
    PARTIAL_SUFFIX,
    RESTORED_NAME,
    Directory,
    remove_unfinished,
)
from wire.config import ConfigError


class Restored(NamedTuple):
    """What was done: when the copy was made, what is fenced, and where the files from before are."""

    copied_ns: int
    fence: fence.Fence
    aside: Path


def restore(
    copy: Path,
    directory: Path,
    cluster: str,
    known_session: int = 0,
    now_ns: Callable[[], int] = time.time_ns,
) -> Restored:
    """Make a copy that was inspected the database of a directory, which may have none.

    Args:
        copy: the file.
        directory: the metadata server's.
        cluster: its name.
        known_session: the highest session whose blocks data servers have, 0 if nobody looked.
        now_ns: the clock.

    Raises:
        ConfigError: a server uses the directory, or it is not of this cluster, or cannot be written. Nothing
            was changed then.
    """
    with closing(Directory(directory, cluster, may_lack_database=True)) as claimed:
        try:
            partial = directory / (RESTORED_NAME + PARTIAL_SUFFIX)
            with closing(pages.connect(copy, read_only=True)) as source:
                copies.write(source, partial, None)
            known = _given(claimed.database)
            known = known._replace(session=max(known_session, known.session))
            with closing(pages.connect(partial, isolation_level=None)) as made:
                (copied,) = made.execute("SELECT value FROM facts WHERE name = 'copied_ns'").fetchone()
                made.execute("PRAGMA synchronous = FULL")
                made.execute("BEGIN IMMEDIATE")
                made.execute("DELETE FROM facts WHERE name = 'copied_ns'")  # a copy no more: it will change
                put_up = fence.put_up(made, now_ns(), known)
                made.execute("COMMIT")
            copies.sync_file(partial)
            aside = claimed.put_in_place(partial)
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be written: {error.strerror}") from None
        except sqlite3.Error as error:
            raise ConfigError(f"{copy} cannot be put back: {error}") from None
        finally:
            with suppress(OSError):  # the next claim tries again
                remove_unfinished(directory)
        if not claimed.complete:
            claimed.describe()
    return Restored(int(copied), put_up, aside)


@contextmanager
def copy_aside(aside: Path, cluster: str, watch: copies.Watch = copies.unwatched) -> Iterator[Path]:
    """Yield a copy of a database that was moved aside, with all that its log has; it is removed at the end.

    Args:
        aside: the directory in which the database and its log are.
        cluster: its name.
        watch: told how far the work is.

    Raises:
        ConfigError: there is no whole database of this format in it. OSError: its disk fails, or is full.
    """
    made = aside / f"{DATABASE_NAME}.copy{PARTIAL_SUFFIX}"
    try:
        with offline.opened(aside, cluster) as connection:
            (changed_ns,) = connection.execute("SELECT max(ctime_ns) FROM inodes").fetchone()
            copies.write(connection, made, changed_ns or 0, watch)
        yield made
    finally:
        with suppress(OSError):
            remove_unfinished(aside)


def _given(database: Path) -> fence.Given:
    """Return the numbers that were given, as far as the database can still tell."""
    if not database.exists():
        return fence.NOTHING
    try:
        with closing(pages.connect(database, read_only=True)) as connection:
            return fence.given(connection)
    except (sqlite3.Error, TypeError, ValueError, KeyError):
        return fence.NOTHING
