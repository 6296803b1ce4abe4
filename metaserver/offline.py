"""A stopped metadata server's directory, looked at and mended from outside.

Takes the directory's lock, so that no server runs on it meanwhile. It must not decide what is wrong
(metaserver.check) nor how it is mended (metaserver.repair). One thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from metaserver import pages, rings
from metaserver.directory import PARTIAL_SUFFIX, Directory, remove_unfinished
from metaserver.log_mark import LogMark
from metaserver.schema import APPLICATION_ID, FORMAT_VERSION
from wire.config import ConfigError
from wire.directories import sync_directory
from wire.messages import ROOT_INODE, BlockRecord

PATH_STEPS_MAX = 10_000
"""Directories of a damaged database may lie in a ring."""


@contextmanager
def opened(directory: Path, cluster: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection to the database of a stopped metadata server.

    Raises:
        ConfigError: a server uses the directory, or it has no database of this cluster and format, or what
            was done with the connection met damage.
    """
    database = directory / "meta.sqlite"
    if not database.exists():
        raise ConfigError(
            f"{database}: there is no database; {pages.ADVICE}, or start the cluster without any file"
        )
    with ExitStack() as stack:
        stack.callback(Directory(directory, cluster).close)
        pages.refuse_unstamped(database)
        mark = LogMark(database)
        with told_in_one_line(database):
            mark.begin()
            stack.callback(mark.close)
            connection = stack.enter_context(closing(pages.connect(database, isolation_level=None)))
            refuse_foreign(connection, database)
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
            mark.retire(connection.execute)


@contextmanager
def told_in_one_line(database: Path) -> Iterator[None]:
    """Raise ConfigError for damage that is met, and for a disk that fails or is full."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if pages.is_damage(error):
            where = ", ".join(map(str, pages.damaged_pages(database))) or str(error)
            raise ConfigError(f"{database} is damaged (pages: {where}); {pages.ADVICE}") from None
        if isinstance(error, sqlite3.OperationalError):
            raise ConfigError(
                f"{database} cannot be used now ({error}): look after its disk, and the room on it, and try "
                "again; no damage was met"
            ) from None
        raise


def refuse_foreign(connection: sqlite3.Connection, database: Path, advice: str = pages.ADVICE) -> None:
    """Refuse what is no database of quorumfs (`advice` says what to do then), or of another format.

    Raises:
        ConfigError: it is. sqlite3.OperationalError: its disk fails, or is full.
    """
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        if not pages.is_damage(error):
            raise
        raise ConfigError(f"{database}: cannot be read ({error}); {advice}") from None
    if application != APPLICATION_ID:
        raise ConfigError(f"{database}: this is no database of quorumfs; {advice}")
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{database} has format {version}, this release reads {FORMAT_VERSION} only; "
            "use the release that made it"
        )


def left_changes(connection: sqlite3.Connection, directory: Path) -> int:
    """Return how many changes of names, which a mount has answered, the database lacks until a server starts.

    Raises OSError.
    """

    def taken(session: int) -> int | None:
        if connection.execute("SELECT 1 FROM sessions WHERE session = ?", (session,)).fetchone() is None:
            return None
        row = connection.execute("SELECT taken FROM rings WHERE session = ?", (session,)).fetchone()
        return 0 if row is None else int(row[0])

    return rings.left_changes(directory, taken)


def committed_blocks(connection: sqlite3.Connection) -> list[BlockRecord]:
    """Return all committed blocks in the order of their ids."""
    rows = connection.execute("SELECT block, length, digest FROM blocks ORDER BY block")
    return list(map(BlockRecord._make, rows))


def paths_of_blocks(connection: sqlite3.Connection, blocks: Sequence[bytes]) -> list[bytes]:
    """Return a path (from /) of each file that refers to one of these blocks, if it has a name."""
    inodes: set[int] = set()
    for block in blocks:
        rows = connection.execute("SELECT DISTINCT ino FROM extents WHERE block = ?", (block,))
        inodes.update(ino for (ino,) in rows)
    return sorted(path for ino in inodes if (path := _path_of(connection, ino)) is not None)


def _path_of(connection: sqlite3.Connection, ino: int) -> bytes | None:
    names: list[bytes] = []
    while ino != ROOT_INODE and len(names) < PATH_STEPS_MAX:
        row = connection.execute("SELECT parent, name FROM entries WHERE ino = ? LIMIT 1", (ino,)).fetchone()
        if row is None:
            return None
        ino = row[0]
        names.append(row[1])
    return b"/" + b"/".join(reversed(names))


def keep_copy(connection: sqlite3.Connection, directory: Path) -> Path:
    """Copy the database beside itself under a new name, before it is mended; return the copy's path.

    Raises OSError, sqlite3.Error: there is no copy.
    """
    taken = {path.name for path in directory.iterdir()}
    numbers = range(1, len(taken) + 2)
    name = next(name for k in numbers if (name := f"meta.sqlite.before-repair-{k}") not in taken)
    kept, partial = directory / name, directory / f"{name}{PARTIAL_SUFFIX}"
    try:
        pages.create(partial)
        with closing(pages.connect(partial)) as copy:
            connection.backup(copy)
        partial.rename(kept)
        sync_directory(directory)
    except BaseException:
        with suppress(OSError):  # who claims the directory next tries again
            remove_unfinished(directory)
        raise
    return kept


def is_whole(connection: sqlite3.Connection) -> bool:
    """Tell whether the database file itself can be relied on; its indexes are built anew first.

    Raises sqlite3.OperationalError: its disk fails, or is full.
    """
    try:
        connection.execute("REINDEX")
        return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not pages.is_damage(error):
            raise
        return False
