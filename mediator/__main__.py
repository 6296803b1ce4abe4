"""`python -m mediator --config FILE`: read the settings, put the parts together, serve until SIGTERM."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mediator.assembly import Mediator
from mediator.service import Service
from wire.client import Client
from wire.config import ClusterConfig, load
from wire.messages import Identity
from wire.process import run, serve
from wire.server import Server


async def main(config_file: Path) -> None:
    """Run one mediator to its end. Raises ConfigError."""
    config = load(config_file)
    identity = Identity("mediator", config.cluster, 0, time.time_ns())
    server = Server(identity, request_seconds=config.deadlines.request_seconds)
    mediator = Mediator(config, client_maker(config))
    Service(mediator, identity).offer_on(server)
    await mediator.start()
    try:
        await serve(server, config.mediator_listen)
    finally:
        await mediator.stop()


def client_maker(config: ClusterConfig) -> Callable[[str, Callable[[], None]], Client]:
    """Return what makes a client in the cluster's encoding."""

    def make(address: str, on_disconnect: Callable[[], None]) -> Client:
        return Client(
            address,
            config.rpc,
            connect_seconds=config.deadlines.connect_seconds,
            on_disconnect=on_disconnect,
        )

    return make


def parse_arguments() -> Path:
    """Return the configuration file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m mediator", description="Serve one cluster's quorum.")
    parser.add_argument("--config", type=Path, required=True, help="the cluster's configuration file")
    return Path(parser.parse_args().config)


if __name__ == "__main__":
    chosen = parse_arguments()
    sys.exit(run(lambda: main(chosen)))
