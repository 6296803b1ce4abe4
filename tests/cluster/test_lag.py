"""Writes with fewer than N servers: what is missing is remembered, survives restarts, and is healed from."""

from __future__ import annotations

import random

from tests.cluster.quorum_client import SECONDS, QuorumClient, connected
from tests.conftest import ClusterFactory
from tests.support import wait_until
from wire.messages import LagCount
from wire.methods import BookkeepingMethods


def lag(client: QuorumClient) -> list[LagCount]:
    return client.meta.call(SECONDS, BookkeepingMethods.lag_counts)


def test_writes_go_on_and_the_lag_is_healed_by_another_mediator(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(read_quorum=3, write_quorum=3, garbage_grace_seconds=0.1)) as client:
        chance = random.Random(4)
        files = {}
        for n in range(40):
            content = chance.randbytes(chance.choice([10, 70_000]))
            files[client.make(f"before-{n}", content)[0]] = content
        client.await_equal_to_committed()
        client.kill(4, 5)
        for n in range(6):
            content = chance.randbytes(chance.choice([10, 70_000, 1_500_000]))
            files[client.make(f"meanwhile-{n}", content)[0]] = content
        over = next(iter(files))
        client.write(over, b"newer")
        files[over] = b"newer"
        missed = lag(client)
        assert [each.server for each in missed] == [4, 5]
        assert missed[0].blocks == missed[1].blocks >= 7
        client.cluster.kill("mediator")
        client.cluster.kill("metaserver")
        client.cluster.start("metaserver")
        client.cluster.start("mediator")
        client.await_states("up", 1, 2, 3)
        assert lag(client) == missed
        client.cluster.start("data-4", "data-5")
        client.await_states("up", deadline_seconds=30)
        wait_until(lambda: not lag(client), 20.0, "nothing lags")
        client.await_equal_to_committed()
        # Older replicas do not exist, so that those who were there all the time are not needed.
        client.kill(1, 2)
        assert {ino: client.read(ino) for ino in files} == files
        client.cluster.start("data-1", "data-2")
        client.await_states("up")


def test_a_mediator_that_is_killed_leaves_the_lag_and_no_inventory_is_compared(
    make_cluster: ClusterFactory,
) -> None:
    with connected(make_cluster(read_quorum=3, write_quorum=3)) as client:
        for n in range(20):
            client.make(f"before-{n}", b"content %d" % n)
        client.await_equal_to_committed()
        client.kill(4, 5)
        written = [client.make(f"late-{n}", b"late %d" % n)[0] for n in range(5)]
        client.cluster.kill("mediator")
        client.cluster.start("mediator")
        client.await_states("up", 1, 2, 3)
        client.cluster.start("data-4", "data-5")
        wait_until(lambda: not lag(client), 20.0, "nothing lags")
        client.await_states("up")
        client.await_equal_to_committed()
        for server in client.status()["servers"]:
            assert server["refill"]["compared"] == 0, server
            assert server["refill"]["done"] == (5 if server["number"] > 3 else 0), server
        client.kill(1, 2)
        assert [client.read(ino) for ino in written] == [b"late %d" % n for n in range(5)]
        client.cluster.start("data-1", "data-2")
        client.await_states("up")


def test_a_lagging_server_is_filled_first_where_a_read_needs_it(make_cluster: ClusterFactory) -> None:
    with connected(make_cluster(read_quorum=3, write_quorum=3)) as client:
        client.kill(4, 5)
        ino, _ = client.make("a", b"content")
        client.cluster.kill("mediator")
        client.cluster.kill("data-1")
        client.cluster.kill("data-2")
        client.cluster.start("data-4", "data-5")
        client.cluster.start("mediator")
        client.await_states("down", 1, 2)
        wait_until(lambda: client.status()["writable"], 15.0, "three servers are up")
        assert client.read(ino) == b"content"
        client.cluster.start("data-1", "data-2")
        client.await_states("up")
        client.await_all_good(ino)
