"""The metadata server's directory: whose it is, and that only one process uses it.

    server.json     {"kind": "metaserver", "cluster": NAME, "format": VERSION, "id": RANDOM}; written last, so
                    that a directory with it once had a whole database
    meta.sqlite     the database (metaserver.schema), with -wal and -shm beside it while in use
    meta.sqlite-sums        the checksums that its pages must have (metaserver.sums)
    meta.sqlite-mark        how far its log is durable (metaserver.log_mark)
    reserve         room that is given up when the disk is full (metaserver.reserve)
    meta.sqlite.copy        a copy of it that is being read (metaserver.copying)
    meta.sqlite.restored    a database that is to take the place of meta.sqlite: from when it has this name
                    on it will, if need be when the directory is claimed next (metaserver.restore)
    before-restore-K/       what was there before; nothing of it is used

Nothing here is ever recreated silently: what is missing or foreign is refused. No other file
descriptor of the database itself may be opened and closed in this process, as that would drop
SQLite's POSIX locks. Called once, at the start, before the event loop serves.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path

from metaserver import log_mark, sums
from wire.config import FORMAT_VERSION, ConfigError
from wire.directories import IDENTITY_NAME, make_directory, refuse_too_long, sync_directory

KIND = "metaserver"
DATABASE_NAME = "meta.sqlite"
RESTORED_NAME = "meta.sqlite.restored"
ASIDE_NAME = "before-restore-"
PARTIAL_SUFFIX = ".partial"
"""What ends the name of a database that is being made."""


def remove_unfinished(directory: Path) -> None:
    """Remove what is left of databases that were not made to their end: they may be as large as the whole.

    Only for who has claimed the directory. Raises OSError.
    """
    for left in directory.glob(f"{DATABASE_NAME}.*{PARTIAL_SUFFIX}*"):
        left.unlink(missing_ok=True)


class Directory:
    """A claimed directory. `close` gives it free."""

    def __init__(self, path: Path, cluster: str, *, may_lack_database: bool = False) -> None:
        """Claim `path`, making it if it is not there.

        Args:
            path: the directory.
            cluster: whose it must be.
            may_lack_database: it is claimed to have its database put back.

        Raises:
            ConfigError: in use, of another cluster, of another format, damaged, not to be written, or too
                deep for a database.
        """
        refuse_too_long(path / DATABASE_NAME)
        self.path = path
        self._cluster = cluster
        self._descriptor = -1
        try:
            make_directory(path)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.complete = self._check_description()
            remove_unfinished(path)
            if (path / RESTORED_NAME).exists():
                self._finish_restore()
        except BlockingIOError:
            self.close()
            raise ConfigError(f"{path}: another metadata server uses this directory; stop it first") from None
        except OSError as error:
            self.close()
            raise ConfigError(f"{path}: cannot be used: {error.strerror}") from None
        except ConfigError:
            self.close()
            raise
        if self.complete and not self.database.exists() and not may_lack_database:
            self.close()
            raise ConfigError(
                f"{self.database} is missing: put it back with `quorumfs restore` or `quorumfs rebuild`, or "
                "empty the directory to begin without any file: `quorumfs up --begin-empty`"
            )

    @property
    def database(self) -> Path:
        """Where the database is."""
        return self.path / DATABASE_NAME

    def _check_description(self) -> bool:
        """Return whether server.json is there; raise ConfigError if it is not of this cluster and format."""
        path = self.path / IDENTITY_NAME
        try:
            found = json.loads(path.read_text())
            kind, cluster, version = found["kind"], found["cluster"], found["format"]
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}: damaged; put it back, or choose another directory") from None
        if kind != KIND or cluster != self._cluster:
            raise ConfigError(
                f"{self.path} belongs to the {kind} of cluster {cluster!r}, not to this cluster "
                f"({self._cluster!r}): choose another directory"
            )
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{self.path} has format {version}, this release reads {FORMAT_VERSION} only; "
                "use the release that made it"
            )
        return True

    def put_in_place(self, made: Path) -> Path:
        """Make a durable file of this directory the database; return where what was there before is.

        Raises:
            OSError: if the file has its old name still, nothing was changed.
        """
        number = 1 + max(self._aside_numbers(), default=0)
        make_directory(self.path / f"{ASIDE_NAME}{number}")  # before what moves the old database there
        made.rename(self.path / RESTORED_NAME)
        self.sync()
        return self._finish_restore()

    def _aside_numbers(self) -> list[int]:
        names = [path.name.removeprefix(ASIDE_NAME) for path in self.path.glob(ASIDE_NAME + "*")]
        return [int(name) for name in names if name.isdigit()]

    def _finish_restore(self) -> Path:
        """Move the old database aside, its log first: SQLite must never see it beside the new database."""
        aside = self.path / f"{ASIDE_NAME}{max(self._aside_numbers(), default=0)}"
        aside.mkdir(exist_ok=True)
        for suffix in ("-wal", "-shm", "-journal", sums.SUFFIX, log_mark.SUFFIX, ""):
            old = self.path / (DATABASE_NAME + suffix)
            if old.exists():
                old.rename(aside / old.name)
        sync_directory(aside)  # a name that is gone here must be there
        self.sync()
        (self.path / RESTORED_NAME).rename(self.database)
        self.sync()
        return aside

    def describe(self) -> None:
        """Write server.json durably, once the database beside it is durable."""
        description = {
            "kind": KIND,
            "cluster": self._cluster,
            "format": FORMAT_VERSION,
            "id": secrets.token_hex(8),  # no other directory's: wire.ring_head.prefix
        }
        partial = self.path / f"{IDENTITY_NAME}{PARTIAL_SUFFIX}"
        with partial.open("w") as file:
            file.write(json.dumps(description) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path / IDENTITY_NAME)
        self.sync()
        self.complete = True

    def sync(self) -> None:
        """Make the names in the directory durable."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the directory free."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
