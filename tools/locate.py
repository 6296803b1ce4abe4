"""Which cluster a command means, and which file a path means.

A cluster is found by --state, else $QUORUMFS_STATE, else by the quorumfs mount that the working directory
lies on, else in ./.quorumfs, else by the mount that the command's path lies on. It must not change anything.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path

from tools import mounts
from tools.cluster import LocalCluster
from tools.output import command_name
from tools.state_directory import CONFIG_NAME
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.messages import ROOT_INODE, MappedExtent
from wire.methods import NamespaceMethods

DEFAULT_STATE = Path(".quorumfs")
CALL_SECONDS = 10.0
EXTENTS_PER_CALL = 1000
HINT = re.compile(r"`quorumfs ((?:(?! --state )[^`])+)`")


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the --state option."""
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="the cluster's state directory (default: ./.quorumfs)"
    )


def typed(words: str, state: Path | None) -> str:
    """Return how this user would type a command for the cluster of another one, which had that --state."""
    option = "" if state is None else f" --state {shlex.quote(str(state))}"
    return f"{command_name()} {words}{option}"


def as_typed(text: str, state: Path | None) -> str:
    """Return what a server said with its hints, as `quorumfs up`, as this user would type them.

    Servers do not know how they were found. What has a --state already stays as it is.
    """
    return HINT.sub(lambda hint: f"`{typed(hint[1], state)}`", text)


def find_cluster(given: Path | None, path: Path | None = None) -> LocalCluster:
    """Return the cluster that a command means.

    Args:
        given: the --state option.
        path: a path that the command is about, if any.

    Raises:
        ConfigError: there is none; the message says what to do.
    """
    directory = find_directory(given, path)
    if directory is None:
        raise ConfigError(
            f"no cluster here; start one with: {typed('up', None)}, or name its directory with --state DIR"
        )
    return LocalCluster.open(directory)


def find_directory(given: Path | None, path: Path | None = None) -> Path | None:
    """Return the state directory that a command means, None if it means none; the arguments are as above.

    A mount that the working directory lies on is not looked into: its servers may be down.
    """
    if given is not None:
        return given
    if named := os.environ.get("QUORUMFS_STATE"):
        return Path(named)
    if (config := mounts.config_of_mount(Path.cwd())) is not None:
        return config.parent
    if (DEFAULT_STATE / CONFIG_NAME).exists():
        return DEFAULT_STATE
    config = None if path is None else mounts.config_of_mount(mounts.absolute(path))
    return None if config is None else config.parent


def find_inode(cluster: LocalCluster, client: BlockingClient, path: Path, state: Path | None = None) -> int:
    """Return the inode number of a path: on a mount, or from the root of the file system.

    Args:
        cluster: whose file it is; `client` is one of its mediators.
        path: as it was given.
        state: the --state that commands need to find the cluster.

    Raises:
        ConfigError: there is no such file.
    """
    absolute = mounts.absolute(path)
    mount = mounts.mount_of(absolute)
    if mount is not None and mounts.config_of_mount(absolute) == cluster.config_file:
        if mount.place == absolute:
            return ROOT_INODE
        try:
            return os.lstat(absolute).st_ino
        except FileNotFoundError:
            look = f"ls {shlex.quote(str(path.parent))}"
            raise ConfigError(f"{path}: no such file; look with: {look}") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; look with: {typed('status', state)}") from None
    names = _names_from_root(cluster, path, absolute)
    steps = client.call(CALL_SECONDS, NamespaceMethods.resolve, ROOT_INODE, names)
    if len(steps) < len(names):
        raise ConfigError(f"{path}: no such file in this cluster; give its path from the mount point on")
    return steps[-1].ino if names else ROOT_INODE


def extents_of(client: BlockingClient, ino: int) -> list[MappedExtent]:
    """Return all extents of a file as it is committed now."""
    found: list[MappedExtent] = []
    offset, complete = 0, False
    while not complete:
        page = client.call(CALL_SECONDS, NamespaceMethods.file_map, ino, offset, EXTENTS_PER_CALL)
        found += page.extents
        complete = page.complete or not page.extents
        offset = found[-1].offset + found[-1].length if found else 0
    return found


def mediator_client(cluster: LocalCluster) -> BlockingClient:
    """Return a client of the cluster's mediators, whichever answers; close it after use."""
    return BlockingClient(cluster.config.mediators, cluster.config.rpc)


def _names_from_root(cluster: LocalCluster, path: Path, absolute: Path) -> list[bytes]:
    """Return a path's names from the root: below a mount point of this cluster, else as it was given."""
    for name in cluster.mount_names():
        record = cluster.process(name).record()
        if record is not None and absolute.is_relative_to(record.place):
            return [os.fsencode(part) for part in absolute.relative_to(record.place).parts]
    return [os.fsencode(part) for part in path.parts if part not in ("/", ".")]
