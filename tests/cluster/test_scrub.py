"""Scrubbing with real processes: damage on disk that nobody has read is found, repaired and remembered."""

from __future__ import annotations

import json

from tests.cluster.quorum_client import connected
from tests.conftest import ClusterFactory
from tests.support import run_command, wait_until
from wire.methods import CommonMethods, LabMethods

SECONDS = 20.0


def test_scrub_repairs_what_nobody_reads(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3)
    with connected(cluster) as client:
        files = [client.make(f"file-{n}", bytes([n]) * 100_000) for n in range(8)]
        blocks = [record.block for record in client.inventories()[0]]
        client.data[2].call(SECONDS, LabMethods.corrupt, blocks[1].hex(), "flip")
        client.data[2].call(SECONDS, LabMethods.corrupt, blocks[4].hex(), "zeros")
        client.data[2].call(SECONDS, LabMethods.corrupt, blocks[5].hex(), "lie")
        told = run_command(cluster.directory, "scrub", "--now", "--json", "--state", str(cluster.directory))
        assert told.returncode == 0, told.stderr
        found = {scrub["server"]: scrub for scrub in json.loads(told.stdout)}
        assert [found[n]["corrupt"] for n in (1, 2, 3)] == [0, 3, 0]
        assert [found[n]["repaired"] for n in (1, 2, 3)] == [0, 3, 0]
        assert all(found[n]["checked"] == len(blocks) for n in (1, 2, 3))
        assert len(files) == len(blocks)
        client.await_equal_to_committed()
        # When the last full pass was survives its data server and its mediator.
        kept = client.data[2].call(SECONDS, CommonMethods.status)["scrub"]
        for name in ("data-2", "mediator"):
            cluster.kill(name)
        cluster.start()
        wait_until(
            lambda: (
                (client.status()["servers"][1]["scrub"] or {}).get("last_full_ns") == kept["last_full_ns"]
            ),
            SECONDS,
            "the last full pass is remembered",
        )
        shown = run_command(cluster.directory, "status", "--state", str(cluster.directory))
        assert "last scrub" in shown.stdout
