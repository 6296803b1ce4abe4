"""Compaction over real servers: what is left of a mostly dead block is rewritten, the rest freed."""

from __future__ import annotations

import asyncio
import random

from mediator.__main__ import client_maker
from mediator.assembly import Mediator
from tests.cluster.quorum_client import SECONDS, connected
from tests.conftest import ClusterFactory
from tests.support import take_seed
from tools.cluster import LocalCluster
from wire.messages import AttributeChanges, Commit, Extent
from wire.methods import BookkeepingMethods, MediatorMethods

MIB = 1024 * 1024


async def compact(cluster: LocalCluster) -> dict[str, int]:
    """Run one round of compaction by a mediator of our own beside the cluster's."""
    mediator = Mediator(cluster.config, client_maker(cluster.config))
    try:
        await mediator.health.first_look()
        await mediator.compactor.run_once(min_age_ms=0)
        return mediator.compactor.status()
    finally:
        await mediator.stop()


def test_a_mostly_dead_block_is_rewritten(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3, garbage_grace_seconds=0.1)
    choice = random.Random(take_seed())
    with connected(cluster) as client:
        data = choice.randbytes(MIB)
        ino, (old,) = client.make("file", data)
        patch = choice.randbytes(900_000)
        new = client.new_block(patch)
        commit = Commit(
            None, [Extent(50_000, len(patch), new.block, 0)], MIB, [new], AttributeChanges(), False
        )
        client.mediator.call(SECONDS, MediatorMethods.write_file, client.ticket(), ino, commit, [patch])
        expected = data[:50_000] + patch + data[950_000:]
        assert client.read(ino) == expected
        told = asyncio.run(compact(cluster))
        assert told == {"blocks": 1, "bytes_freed": 900_000, "given_up": 0}
        assert client.read(ino) == expected
        assert client.meta.call(SECONDS, BookkeepingMethods.witnesses, [old.block]) == [None]
        # The old block leaves all servers; each has exactly what files refer to.
        client.await_equal_to_committed()
        held = sum(record.length for record in client.inventories()[0])
        assert held == client.meta.call(SECONDS, BookkeepingMethods.referenced_bytes) == MIB
        assert asyncio.run(compact(cluster))["blocks"] == 0
