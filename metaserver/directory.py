"""The metadata server's directory: whose it is, and that only one process uses it.

    server.json     {"kind": "metaserver", "cluster": NAME, "format": VERSION}; written last, so that a
                    directory with it once had a whole database
    meta.sqlite     the database (metaserver.schema), with -wal and -shm beside it while in use

Nothing here is ever recreated silently: what is missing or foreign is refused. No other file
descriptor of the database itself may be opened and closed in this process, as that would drop
SQLite's POSIX locks. Called once, at the start, before the event loop serves.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from wire.config import FORMAT_VERSION, ConfigError

KIND = "metaserver"


class Directory:
    """A claimed directory. `close` gives it free."""

    def __init__(self, path: Path, cluster: str) -> None:
        """Claim `path`, making it if it is not there.

        Raises:
            ConfigError: in use, of another cluster, of another format, damaged, or not to be written.
        """
        self.path = path
        self._cluster = cluster
        self._descriptor = -1
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.complete = self._check_description()
        except BlockingIOError:
            self.close()
            raise ConfigError(f"{path}: another metadata server uses this directory; stop it first") from None
        except OSError as error:
            self.close()
            raise ConfigError(f"{path}: cannot be used: {error.strerror}") from None
        except ConfigError:
            self.close()
            raise
        if self.complete and not self.database.exists():
            self.close()
            raise ConfigError(
                f"{self.database} is missing: put it back, or empty the directory to begin without any file"
            )

    @property
    def database(self) -> Path:
        """Where the database is."""
        return self.path / "meta.sqlite"

    def _check_description(self) -> bool:
        """Return whether server.json is there; raise ConfigError if it is not of this cluster and format."""
        path = self.path / "server.json"
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
                f"{self.path} has format {version}, this release reads format {FORMAT_VERSION} only"
            )
        return True

    def describe(self) -> None:
        """Write server.json durably, once the database beside it is durable."""
        description = {"kind": KIND, "cluster": self._cluster, "format": FORMAT_VERSION}
        partial = self.path / "server.json.partial"
        with partial.open("w") as file:
            file.write(json.dumps(description) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path / "server.json")
        self.sync()
        self.complete = True

    def sync(self) -> None:
        """Make the names in the directory durable, and the directory's own name."""
        os.fsync(self._descriptor)
        parent = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def close(self) -> None:
        """Give the directory free."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
