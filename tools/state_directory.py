"""A cluster's state directory: what makes it one, who may change it now, and what a new one begins with.

It must not start anything. Safe in any thread; `locked` is for several processes.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.addresses import PORTS, free_addresses
from tools.processes import ClusterError
from wire.config import ClusterConfig, ConfigError, DataServerConfig, Encoding
from wire.directories import IDENTITY_NAME
from wire.quorum import Quorum
from wire.ring_file import own_files
from wire.ring_head import BLOCKS, CHANGES, SHARED_MEMORY, prefix

CONFIG_NAME = "cluster.toml"
LOCK_NAME = "lock"
MOST_MEDIATORS = 9


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other commands from changing what is in a state directory. Raises ClusterError if one does.

    It may be on a disk that is read-only by now, as after an error: what runs there can be stopped still.
    """
    handle = os.open(directory / LOCK_NAME, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                f"another quorumfs command is at work on {directory}; try again when it has ended"
            ) from None
        yield
    finally:
        os.close(handle)


def remove_contents(directory: Path) -> None:
    """Remove all that lies in a directory. Raises OSError."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def forget_rings(config: ClusterConfig) -> None:
    """Remove what servers that were killed have left in shared memory: their directories go too."""
    left = [(config.metaserver_directory, CHANGES), *((s.directory, BLOCKS) for s in config.data_servers)]
    for directory, kind in left:
        for path in own_files(SHARED_MEMORY, prefix(directory, kind)) if directory.exists() else ():
            path.unlink(missing_ok=True)


def refuse_strangers(directory: Path) -> None:
    """Raise ConfigError if a directory has more in it than a command that was killed would leave."""
    left = {LOCK_NAME, f"{CONFIG_NAME}.tmp"}
    if directory.exists() and any(entry.name not in left for entry in directory.iterdir()):
        if any((place / IDENTITY_NAME).exists() for place in (directory / "meta", *directory.glob("data-*"))):
            raise ConfigError(
                f"{directory} holds a cluster without its {CONFIG_NAME}: write that again from what "
                "`quorumfs config --from PATH` prints (PATH: meta/, a backup, or a data server's directory)"
            )
        raise ConfigError(f"{directory} holds other files and no {CONFIG_NAME}; choose another with --state")


def new_configuration(
    directory: Path, quorum: Quorum, mediators: int, rpc: Encoding, settings: dict[str, Any]
) -> ClusterConfig:
    """Return the configuration of a new cluster, with addresses on loopback that are free now.

    Args:
        directory: the state directory, in which all servers have their own.
        quorum: N, Qr and Qw.
        mediators: so many side by side.
        rpc: the encoding that the parts use among themselves.
        settings: other fields of ClusterConfig.

    Raises:
        ConfigError: too many mediators, or too few free ports.
    """
    if not 1 <= mediators <= MOST_MEDIATORS:
        raise ConfigError(f"{mediators} mediators: choose 1 to {MOST_MEDIATORS}")
    wanted = quorum.servers + 1 + mediators
    addresses = free_addresses(wanted)
    if len(addresses) < wanted:
        raise ConfigError(
            f"{quorum.servers} data servers: {wanted} ports are needed, and of {PORTS.start} to "
            f"{PORTS.stop - 1} only {len(addresses)} are free; choose fewer servers"
        )
    return ClusterConfig(
        cluster=secrets.token_hex(8),
        quorum=quorum,
        mediator_listen=addresses[0],
        metaserver_listen=addresses[1],
        metaserver_directory=directory / "meta",
        data_servers=tuple(
            DataServerConfig(number, addresses[number + 1], directory / f"data-{number}")
            for number in range(1, quorum.servers + 1)
        ),
        more_mediators=tuple(addresses[quorum.servers + 2 :]),
        rpc=rpc,
        **settings,
    )
