"""A data server's directory: whose it is, that one process at a time serves it, and emptying it.

Used once at the start, in one thread; the claim is let go by `release` or by the process's end.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from pathlib import Path

from dataserver.durable import write_file
from dataserver.marks import MILESTONES_NAME, SCRUB_NAME
from wire.config import FORMAT_VERSION, ConfigError
from wire.directories import IDENTITY_NAME, make_directory, refuse_too_long, sync_directory
from wire.ring_file import own_files
from wire.ring_head import BLOCKS, SHARED_MEMORY, prefix

_log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite"
_DISCARDED = "discarded-"
_STORE_NAMES = (
    "segments",
    "quarantine",
    INDEX_NAME,
    f"{INDEX_NAME}-wal",
    f"{INDEX_NAME}-shm",
    SCRUB_NAME,
    MILESTONES_NAME,
)
_OF_THE_DISK = "lost+found"
"""What a file system has of its own where it is mounted; as a rule nobody but root may look into it."""
_DRAFTS = {f"{name}.tmp" for name in (IDENTITY_NAME, SCRUB_NAME, MILESTONES_NAME)}
"""What a kill may leave of files that are written whole."""
_NOT_A_STORE = {*_DRAFTS, _OF_THE_DISK}


class DataDirectory:
    """A directory claimed for data server `number` of `cluster`."""

    def __init__(self, path: Path, cluster: str, number: int) -> None:
        """Claim a directory; one that is missing or blank is made this server's.

        Raises:
            ConfigError: it belongs to another server, cluster or a newer release, another process serves
                it, it has other things in it, it is too deep for a database, or it cannot be used.
        """
        refuse_too_long(path / INDEX_NAME)
        self.path = path
        try:
            make_directory(path)
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be used as a data directory: {error.strerror}") from None
        try:
            _lock(path, self._handle)
            self._identify(cluster, number)
            self._remove_discarded()
        except OSError as error:
            self.release()
            raise ConfigError(f"{path}: cannot be used as a data directory: {error}") from None
        except ConfigError:
            self.release()
            raise

    def _identify(self, cluster: str, number: int) -> None:
        file = self.path / IDENTITY_NAME
        if not file.exists():
            strangers = sorted(entry.name for entry in self.path.iterdir() if entry.name not in _NOT_A_STORE)
            if strangers:
                raise ConfigError(
                    f"{self.path} has no {IDENTITY_NAME} but other things in it ({strangers[0]}); "
                    "choose an empty directory"
                )
            told = {
                "format": FORMAT_VERSION,
                "cluster": cluster,
                "number": number,
                "id": secrets.token_hex(8),  # no other directory's: wire.ring_head.prefix
            }
            write_file(file, json.dumps(told, indent=1).encode())
            return
        _refuse_another(self.path, read_identity(self.path), cluster, number)

    def _remove_discarded(self) -> None:
        for old in self.path.glob(f"{_DISCARDED}*"):
            shutil.rmtree(old)

    def discard_contents(self) -> None:
        """Empty the directory but for its identity. The store must be closed.

        All is moved aside first: a crash in between leaves what the next start removes.
        """
        aside = self.path / f"{_DISCARDED}{time.time_ns()}"
        aside.mkdir()
        for name in _STORE_NAMES:
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        sync_directory(self.path)
        _log.warning("discarded everything in %s, as asked", self.path)

    def release(self) -> None:
        """Let other processes claim the directory."""
        os.close(self._handle)


def empty(path: Path, cluster: str, number: int) -> None:
    """Remove all that lies in the directory of a data server which is stopped, damaged or not.

    What the server was given in shared memory goes too: nothing that is begun here would find it.
    The directory itself stays: it may be a link, or a disk's mount point, with the disk's own lost+found.

    Args:
        path: the directory; one that is missing is made.
        cluster: the name of the cluster; `number` is the data server's.
        number: from 1 on.

    Raises:
        ConfigError: it belongs to another server, a process serves it, or what lies there is no data
            server's. Nothing was removed.
        OSError: it cannot be emptied.
    """
    path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(path, handle)
        try:
            found = read_identity(path)
        except ConfigError:
            _refuse_strangers(path)
        else:
            _refuse_another(path, found, cluster, number)
            for ring in own_files(SHARED_MEMORY, prefix(path, BLOCKS)):
                ring.unlink()
        for entry in path.iterdir():
            if entry.name == _OF_THE_DISK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    finally:
        os.close(handle)


def _lock(path: Path, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{path} is served by another process; stop that one, or choose another directory"
        ) from None


def _refuse_another(path: Path, found: dict[str, object], cluster: str, number: int) -> None:
    if (found["cluster"], found["number"]) != (cluster, number):
        raise ConfigError(
            f"{path} belongs to data server {found['number']} of cluster {found['cluster']}, not to "
            f"{number} of {cluster}; choose another directory"
        )


def _refuse_strangers(path: Path) -> None:
    """Refuse what no data server would leave, where no server.json tells whose the directory is."""
    known = {IDENTITY_NAME, *_STORE_NAMES, *_NOT_A_STORE}
    names = sorted(entry.name for entry in path.iterdir())
    if strangers := [name for name in names if name not in known and not name.startswith(_DISCARDED)]:
        raise ConfigError(
            f"{path} has other things in it than a data server's ({strangers[0]}); "
            "choose another directory, or empty it yourself"
        )


def read_identity(path: Path) -> dict[str, object]:
    """Return what a directory's server.json says: "format", "cluster", "number". Raises ConfigError."""
    file = path / IDENTITY_NAME
    try:
        found = json.loads(file.read_bytes())
        version, cluster, number = found["format"], found["cluster"], found["number"]
    except FileNotFoundError:
        raise ConfigError(f"{path} is no data server's directory: it has no {IDENTITY_NAME}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); restore it from another place") from None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format {version}, this release reads {FORMAT_VERSION} only; "
            "use the release that made it"
        )
    return {"format": version, "cluster": cluster, "number": number}
