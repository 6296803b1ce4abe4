"""Scrubbing with real processes: damage on disk that nobody has read is found, repaired and remembered."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def test_a_server_that_goes_down_ends_the_watching(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(servers=2, read_quorum=1, write_quorum=2, scrub_bytes_per_second=200_000)
    with connected(cluster) as client:
        client.make("file", bytes(4_000_000))
        words = ["scrub", "--now", "--server", "2", "--state", str(cluster.directory)]
        with ThreadPoolExecutor() as threads:
            told = threads.submit(run_command, cluster.directory, *words)
            wait_until(lambda: hurries(client.status(), 2), SECONDS, "server 2 is scrubbed")
            cluster.kill("data-2")
            done = told.result(60)
        assert (done.returncode, done.stdout) == (1, "")
        assert "data-2 went down" in done.stderr
        # Who was started this moment is not said to be down.
        cluster.start("data-2")
        told_again = run_command(cluster.directory, "refill", "2", "--state", str(cluster.directory))
        assert told_again.returncode == 0, told_again.stderr


def hurries(status: dict[str, Any], number: int) -> bool:
    scrub = status["servers"][number - 1]["scrub"]
    # The first batch is checked: the call that began it needs this server no more.
    return scrub is not None and scrub["hurried"] and scrub["state"] == "running" and scrub["checked"] > 0
