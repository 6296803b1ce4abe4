"""Blocks in memory that a mediator lends: each data server beside it has mapped it, whoever restarts."""

from __future__ import annotations

import random
from pathlib import Path

from tests.cluster.quorum_client import QuorumClient, connected
from tests.conftest import ClusterFactory
from tools.cluster import LocalCluster

MIB = 1024 * 1024


def borrowers(cluster: LocalCluster) -> list[str]:
    """Return the data servers that have mapped memory of another process."""
    return [
        process.name
        for process in cluster.status()
        if process.name.startswith("data-")
        and "quorumfs-lent" in Path(f"/proc/{process.pid}/maps").read_text()
    ]


def write_and_verify(client: QuorumClient, name: str) -> None:
    content = random.Random(name).randbytes(3 * MIB + 5000)
    ino, _ = client.make(name, content)
    assert client.read(ino) == content
    client.await_all_good(ino)


def test_all_servers_have_the_blocks_whoever_restarts(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=2)
    everybody = ["data-1", "data-2", "data-3"]
    with connected(cluster) as client:
        write_and_verify(client, "a")
        assert borrowers(cluster) == everybody
        cluster.restart("data-2")
        client.await_states("up")
        write_and_verify(client, "b")
        assert borrowers(cluster) == everybody
        cluster.restart("mediator")
        client.await_states("up")
        write_and_verify(client, "c")
        assert borrowers(cluster) == everybody
