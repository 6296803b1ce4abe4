"""`python -m mediator --config FILE [--number K]`: read the settings, serve until SIGTERM."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mediator.assembly import Mediator
from mediator.service import Service
from wire.client import Client
from wire.config import ClusterConfig, ConfigError, load
from wire.lending import Lender, make_lender
from wire.messages import Identity
from wire.process import run, serve
from wire.server import Server


async def main(config_file: Path, number: int = 1) -> None:
    """Run one mediator to its end, the first of the configuration's or another. Raises ConfigError."""
    config = load(config_file)
    if not 1 <= number <= len(config.mediators):
        raise ConfigError(f"there is no mediator {number}: {config_file} lists {len(config.mediators)}")
    identity = Identity("mediator", config.cluster, 0, time.time_ns())
    lender = make_lender()
    server = Server(identity, request_seconds=config.deadlines.request_seconds, lender=lender)
    mediator = Mediator(config, client_maker(config, lender))
    Service(mediator, identity).offer_on(server)
    await mediator.start()
    try:
        await serve(server, config.mediators[number - 1])
    finally:
        await mediator.stop()


def client_maker(
    config: ClusterConfig, lender: Lender | None = None
) -> Callable[[str, Callable[[], None]], Client]:
    """Return what makes a client in the cluster's encoding, which lends memory to servers beside it."""

    def make(address: str, on_disconnect: Callable[[], None]) -> Client:
        return Client(
            address,
            config.rpc,
            connect_seconds=config.deadlines.connect_seconds,
            silence_seconds=config.deadlines.silence_seconds,
            on_disconnect=on_disconnect,
            lender=lender,
        )

    return make


def parse_arguments() -> tuple[Path, int]:
    """Return the configuration file and the mediator's number that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m mediator", description="Serve one cluster's quorum.")
    parser.add_argument("--config", type=Path, required=True, help="the cluster's configuration file")
    parser.add_argument("--number", type=int, default=1, metavar="K", help="which of its mediators")
    parsed = parser.parse_args()
    return parsed.config, parsed.number


if __name__ == "__main__":
    chosen, which = parse_arguments()
    sys.exit(run(lambda: main(chosen, which)))
