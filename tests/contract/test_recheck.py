"""A refusal asks the servers that are down once more, over real connections."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mediator.health import Health
from mediator.servers import Server
from wire.client import Client
from wire.messages import Identity
from wire.methods import CommonMethods
from wire.quorum import Quorum
from wire.server import Server as WireServer


class Answers:
    """A data server that says who it is."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def identity(self) -> Identity:
        return self._identity


def test_a_refusal_does_not_rest_on_an_attempt_to_connect_from_before(tmp_path: Path) -> None:
    """The fault sweep found reads refused in the moment in which a server was up again, on a busy machine."""

    async def scenario() -> None:
        address = f"unix:{tmp_path / 'socket'}"
        identity = Identity("dataserver", "test", 1, 7)
        server = Server(1, address, lambda to, broken: Client(to, on_disconnect=broken))
        metaserver = Server(0, address, lambda to, broken: Client(to, on_disconnect=broken))
        health = Health("test", Quorum(1, 1, 1), [server], metaserver, 10.0, lambda _: None)
        end = WireServer(identity)
        end.register(CommonMethods, Answers(identity), only=["identity"])
        await health.run_once(server)
        assert not server.up
        await end.start(address)
        await health.recheck()  # the attempt above failed a moment ago
        assert server.up, server.error
        await server.client.close()
        await end.drain()

    asyncio.run(scenario())
