"""A cluster's file system, put together from its configuration: for the mount, and as a library without one.

It wires and undoes, in one place, and decides nothing. What it yields is safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fusefs.filesystem import FileSystem
from fusefs.handles import OpenInodes
from fusefs.patience import Patience
from fusefs.remote import RemoteBlocks, RemoteNamespace
from fusefs.session import Session
from wire.blocking import BlockingClient
from wire.blocking_links import Waiting
from wire.config import ClusterConfig, ConfigError
from wire.errors import QuorumfsError
from wire.hints import how_to_start

BEGIN_SECONDS = 5.0
"""Who mounts learns so soon that there is no cluster."""


@contextmanager
def connect(config: ClusterConfig, name: str) -> Iterator[FileSystem]:
    """Yield the file system of a running cluster; at the end everything is committed and closed.

    Args:
        config: the cluster's configuration.
        name: tells people whose session it is.

    Raises:
        ConfigError: the mediator does not answer, or the metadata server does not answer it.
    """
    deadlines = config.deadlines
    with ExitStack() as stack:
        patience = Patience(config.unavailable, deadlines)
        client = BlockingClient(
            config.mediators,
            config.rpc,
            connect_seconds=deadlines.connect_seconds,
            waiting=Waiting(patience.look, patience.duty),
        )
        stack.callback(client.close)
        session = Session(client, deadlines, name, patience)
        namespace = RemoteNamespace(client, session, deadlines, patience)
        opens = OpenInodes(namespace, patience.look)
        session.open_inodes, session.tell_open = opens.numbers, opens.tell_open
        try:
            session.begin(BEGIN_SECONDS)
        except QuorumfsError as error:
            raise ConfigError(
                f"the metadata server cannot be asked through the mediator at "
                f"{' or '.join(config.mediators)} ({error}); {how_to_start(config)}"
            ) from None
        stack.callback(session.end)
        session.keep_alive()
        filesystem = FileSystem(
            namespace,
            RemoteBlocks(client, session, deadlines, patience),
            session,
            opens,
            config.dirty_bytes,
            config.commit_age_seconds,
            patience,
            session.grant,
        )
        session.held_locks, session.lose_locks = filesystem.locks.reclaim, filesystem.locks.lose
        stack.callback(filesystem.end)
        filesystem.begin()
        yield filesystem
