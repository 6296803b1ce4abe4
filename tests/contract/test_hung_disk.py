"""What a data server answers while its disk hangs: it is not taken to be down for the puts that wait."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from dataserver.block_rings import BlockRings
from dataserver.marks import Milestones, ScrubMark
from dataserver.memory import MemoryStore
from dataserver.quarantine import Quarantine
from dataserver.service import DataService
from wire.arrivals import MOST_HELD_BYTES
from wire.client import Client
from wire.config import Encoding
from wire.digest import BLOCK_BYTES, Buffer, block_digest
from wire.messages import Identity
from wire.methods import CommonMethods, DataMethods
from wire.server import Server

MEDIATORS = 2
PUTS = MOST_HELD_BYTES // BLOCK_BYTES // MEDIATORS + 4
PROBE_SECONDS = 10.0


class HungStore(MemoryStore):
    """A store whose disk takes nothing before `goes_on` is set, and was slow before."""

    puts_quickly = False

    def __init__(self) -> None:
        super().__init__()
        self.goes_on, self.is_hung = threading.Event(), threading.Event()

    def put(self, block: bytes, digest: bytes, data: Buffer) -> None:
        self.is_hung.set()
        assert self.goes_on.wait(60)
        super().put(block, digest, data)


@pytest.mark.parametrize("rpc", ["msgpack", "xml"])
def test_a_heartbeat_is_answered_while_more_puts_wait_than_are_held(tmp_path: Path, rpc: Encoding) -> None:
    identity, store = Identity("dataserver", "test", 1, 1), HungStore()
    service = DataService(
        store,
        identity,
        ScrubMark(tmp_path),
        Milestones(tmp_path),
        Quarantine(tmp_path / "losers", 1, 1.0),
        BlockRings(tmp_path, store),
    )
    data = bytes(BLOCK_BYTES)

    async def scenario() -> None:
        server = Server(identity)
        server.register(CommonMethods, service)
        server.register(DataMethods, service)
        address = await server.start("127.0.0.1:0")
        clients = [Client(address, rpc, connect_seconds=PROBE_SECONDS) for _ in range(MEDIATORS)]
        puts = [
            asyncio.ensure_future(
                client.call(
                    60.0, DataMethods.put, bytes([k]) * 8 + n.to_bytes(8), block_digest(data), data, True
                )
            )
            for k, client in enumerate(clients)
            for n in range(PUTS)
        ]
        try:
            await asyncio.to_thread(store.is_hung.wait, 10)
            for client in clients:
                assert await client.call(PROBE_SECONDS, CommonMethods.identity) == identity
            assert not any(put.done() for put in puts)
        finally:
            store.goes_on.set()
            await asyncio.gather(*puts)
        assert store.count() == MEDIATORS * PUTS
        for client in clients:
            await client.close()
        await server.drain()

    asyncio.run(scenario())
    service.close()
