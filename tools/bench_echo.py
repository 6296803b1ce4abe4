"""python -m tools.bench_echo: a server that does nothing but answer, to time the wire alone.

Once started it prints its ready line, and serves until SIGTERM.
"""

from __future__ import annotations

import sys

from wire.messages import Identity
from wire.process import run, serve
from wire.server import Server


class EchoMethods:
    """Calls that cost nothing but themselves."""

    def echo(self, data: bytes) -> bytes:
        """Return the bytes that were sent."""
        raise NotImplementedError


class EchoService:
    """Answers at once."""

    def echo(self, data: bytes) -> bytes:
        return data


async def _serve() -> None:
    server = Server(Identity("echo", "bench", 0, 1))
    server.register(EchoMethods, EchoService())
    await serve(server, "127.0.0.1:0")


if __name__ == "__main__":
    sys.exit(run(_serve))
