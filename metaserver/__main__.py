"""`python -m metaserver --config FILE`: one cluster's metadata server, in the foreground.

Parses and wires; everything that is opened is registered to be closed. Exit status 2 with one line on
standard error for settings that cannot work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path

from metaserver.directory import Directory
from metaserver.grants import Grants
from metaserver.log import Checkpointer, LogSync
from metaserver.service import MetaService
from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.config import ClusterConfig, ConfigError, dumps, load
from wire.errors import InternalError
from wire.methods import BookkeepingMethods, CommonMethods, NamespaceMethods
from wire.process import run, serve
from wire.server import Server

REAP_SECONDS = 1.0
"""Expired sessions are looked for so often (or ten times a lease, if that is shorter)."""


async def serve_metadata(config: ClusterConfig, base: Path) -> None:
    """Open the directory, serve until told to stop, close; begin anew if the database is an older one.

    Args:
        config: the cluster.
        base: where its file is, to which the directories that are kept in copies are relative.

    Raises:
        ConfigError: the directory, the database or the address cannot be used.
    """
    with closing(Directory(config.metaserver_directory, config.cluster)) as directory:
        stop, older_than = asyncio.Event(), 0
        while not stop.is_set():
            older_than = await _serve_one_life(config, base, directory, older_than, stop)


async def _serve_one_life(
    config: ClusterConfig, base: Path, directory: Directory, older_than: int, stop: asyncio.Event
) -> int:
    """Serve until `stop`, or until a milestone is told that the database is behind; return that (or 0)."""
    found: list[int] = []
    async with AsyncExitStack() as stack:
        store = Store(directory.database, config.cluster, complete=directory.complete, older_than=older_than)
        stack.callback(store.close)
        store.keep_configuration(dumps(config, base))
        log = LogSync(directory.database, store.changed_rows, store.log_mark)
        stack.callback(log.close)
        try:
            directory.sync()  # the name of the log, before anything is noted to be in it
            await log.sync()
            if not directory.complete:
                directory.describe()
        except (OSError, InternalError) as error:
            raise ConfigError(f"{directory.path} cannot be made durable: {error}") from None
        sessions = Sessions(store, config.lease_seconds)
        before = config.grant_seconds if sessions.count() or sessions.may_reclaim() else 0.0
        grants = Grants(sessions, config.grant_seconds, before)
        try:
            service = MetaService(store, sessions, log, config.cluster, config.reserve_bytes, grants)
        except InternalError as error:
            raise ConfigError(f"{directory.path} cannot be used: {error.message}") from None
        stack.callback(service.rings.close)
        stack.callback(service.reaper.close)
        stack.callback(service.checking.close)
        stack.callback(service.page_check.close)
        stack.callback(service.copying.close)
        checkpointer = Checkpointer(store)
        stack.callback(checkpointer.close)
        jobs = [
            asyncio.create_task(checkpointer.run_forever()),
            asyncio.create_task(service.page_check.run_forever()),
            asyncio.create_task(service.reaper.run_forever(min(REAP_SECONDS, config.lease_seconds / 10))),
        ]
        stack.push_async_callback(_stop, jobs)
        ended = asyncio.Event()

        def begin_anew(milestone: int) -> None:
            found.append(milestone)
            ended.set()

        service.milestones.begin_anew = begin_anew
        server = offered(service, config.deadlines.request_seconds)
        await serve(server, config.metaserver_listen, stop, ended)
        if not found:
            await service.reaper.finish()
    return max(found, default=0)


def offered(service: MetaService, request_seconds: float) -> Server:
    """Return a server of all methods."""
    server = Server(service.identity(), request_seconds=request_seconds)
    for table in (CommonMethods, NamespaceMethods, BookkeepingMethods):
        server.register(table, service)
    return server


async def _stop(jobs: list[asyncio.Task[None]]) -> None:
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


def main() -> int:
    """Parse the command line and run. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m metaserver", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the cluster's configuration file")
    arguments = parser.parse_args()

    async def begin() -> None:
        config = load(arguments.config)
        try:
            await serve_metadata(config, arguments.config.absolute().parent)
        except OSError as error:
            raise ConfigError(
                f"{config.metaserver_directory}: the disk failed: {error}; look after it"
            ) from None

    return run(begin)


if __name__ == "__main__":
    sys.exit(main())
