"""python -m dataserver --config FILE --number K [--lab]: serves one data server's blocks until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dataserver.block_rings import BlockRings
from dataserver.directory import DataDirectory
from dataserver.lab import LabRefused, LabService
from dataserver.marks import Milestones, ScrubMark
from dataserver.quarantine import DAY_SECONDS
from dataserver.segments import SegmentStore
from dataserver.service import DataService
from wire.config import ClusterConfig, ConfigError, DataServerConfig, load
from wire.errors import InternalError
from wire.messages import Identity
from wire.methods import CommonMethods, DataMethods, LabMethods
from wire.process import run, serve
from wire.server import Server


def main() -> int:
    parser = argparse.ArgumentParser(prog="dataserver", description="Serve one data server's blocks.")
    parser.add_argument("--config", type=Path, required=True, help="the cluster's configuration file")
    parser.add_argument("--number", type=int, required=True, help="which data server this is, 1 to N")
    parser.add_argument(
        "--lab", action="store_true", help="offer methods that corrupt, terminate and restart"
    )
    parser.add_argument("--listen", help="listen here, whatever the configuration says")
    arguments = parser.parse_args()
    return run(lambda: _serve(arguments))


async def _serve(arguments: argparse.Namespace) -> None:
    """Serve until told to stop; with the index built anew whenever it turns out to be damaged."""
    config = load(arguments.config)
    own = _find(config, arguments.number)
    directory = DataDirectory(own.directory, config.cluster, own.number)
    with contextlib.ExitStack() as stack:
        stack.callback(directory.release)
        stop, address = asyncio.Event(), arguments.listen or own.listen
        while not stop.is_set():
            address = await _serve_one_life(config, own, directory, arguments, address, stop)


async def _serve_one_life(
    config: ClusterConfig,
    own: DataServerConfig,
    directory: DataDirectory,
    arguments: argparse.Namespace,
    address: str,
    stop: asyncio.Event,
) -> str:
    """Serve until `stop`, or until the index is damaged; return the address that was listened at."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:

        def on_damaged_index() -> None:
            loop.call_soon_threadsafe(ended.set)

        store = _open_store(directory.path, config, on_damaged_index)
        stack.callback(store.close)
        identity = Identity("dataserver", config.cluster, own.number, time.time_ns())
        milestones = Milestones(directory.path)
        rings = _open_rings(directory.path, store)
        scrub = ScrubMark(directory.path)
        service = DataService(store, identity, scrub, milestones, store.quarantine, rings)
        stack.callback(service.close)
        server = Server(identity, request_seconds=config.deadlines.request_seconds)
        server.register(CommonMethods, service)
        server.register(DataMethods, service, before=service.bring_in)

        def restart(blank: bool) -> None:
            here = [] if arguments.listen else ["--listen", server.address]
            try:
                service.close()
                store.close()
                if blank:
                    directory.discard_contents()
            finally:
                os.execv(sys.executable, [sys.executable, "-m", "dataserver", *sys.argv[1:], *here])

        lab = LabService(store, own.number, restart) if arguments.lab else LabRefused()
        server.register(LabMethods, lab, before=service.bring_in)
        maintenance = asyncio.create_task(service.maintain_for_ever())
        stack.callback(maintenance.cancel)
        await serve(server, address, stop, ended)
        return server.address


def _open_store(directory: Path, config: ClusterConfig, on_damaged_index: Callable[[], None]) -> SegmentStore:
    try:
        return SegmentStore(
            directory,
            reserve_bytes=config.reserve_bytes,
            quarantine_bytes=config.quarantine_bytes,
            quarantine_seconds=config.quarantine_days * DAY_SECONDS,
            on_damaged_index=on_damaged_index,
        )
    except (OSError, sqlite3.Error, InternalError) as error:
        raise ConfigError(
            f"{directory}: cannot be opened: {error}; look at its rights and its disk"
        ) from None


def _open_rings(directory: Path, store: SegmentStore) -> BlockRings:
    try:
        return BlockRings(directory, store)
    except (OSError, InternalError) as error:
        raise ConfigError(f"what {directory} was given last cannot be read: {error}") from None


def _find(config: ClusterConfig, number: int) -> DataServerConfig:
    for server in config.data_servers:
        if server.number == number:
            return server
    raise ConfigError(f"there is no data server {number}; the configuration has 1 to {config.quorum.servers}")


if __name__ == "__main__":
    sys.exit(main())
