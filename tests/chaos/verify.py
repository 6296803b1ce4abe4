"""Is everything whole when nothing is broken? Scrub until nothing is found, fsck, replica verify, the logs.

It runs the command line as a user would; what it returns are the lines that are wrong, none if all is right.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from metaserver import offline
from tests.chaos.cluster import ChaosCluster
from tests.conftest import unexpected_lines
from tests.support import ROOT
from tools.cluster import LocalCluster
from tools.health import ask_mediator

WHOLE_SECONDS = 120.0
COMMAND_SECONDS = 120.0
LOOK_SECONDS = 1.0


def command(cluster: LocalCluster, *words: str, state: bool = True) -> tuple[int, Any]:
    """Run `quorumfs WORDS --json`; return its exit status and its answer."""
    place = ["--state", str(cluster.directory)] if state else []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.cli", *words, "--json", *place],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, done.stderr.strip() or done.stdout.strip()


def await_whole(cluster: ChaosCluster) -> list[str]:
    """Wait until scrub and fsck find nothing; return what they still find at the deadline."""
    end = time.monotonic() + WHOLE_SECONDS
    while True:
        found = findings(cluster)
        if not found or time.monotonic() > end:
            return found
        time.sleep(LOOK_SECONDS)


def findings(cluster: ChaosCluster) -> list[str]:
    """Return what is not whole now."""
    status = ask_mediator(cluster)
    if status is None:
        return ["the mediator does not answer"]
    states = {server["number"]: server["state"] for server in status["servers"]}
    if any(state != "up" for state in states.values()):
        return [f"data servers are {states}"]
    exit_status, passes = command(cluster, "scrub", "--now")
    if not isinstance(passes, list) or exit_status:
        return [f"scrub: {exit_status}, {passes}"]
    found = [f"scrub found on data-{p['server']}: {p}" for p in passes if p["corrupt"] or p["missing"]]
    return found or fsck(cluster)


def fsck(cluster: ChaosCluster) -> list[str]:
    """Return what fsck finds, running or stopped."""
    exit_status, report = command(cluster, "fsck")
    if exit_status == 0:
        return []
    if not isinstance(report, dict):
        return [f"fsck: {exit_status}, {report}"]
    return [f"fsck: {check['name']}: {check['rows'][:3]}" for check in report["checks"] if check["found"]]


def stopped(cluster: ChaosCluster) -> list[str]:
    """Return what is wrong in the directories and the logs of a cluster that was ended."""
    found = [f"after the end, {line}" for line in fsck(cluster)]
    config = cluster.config
    with offline.opened(config.metaserver_directory, config.cluster) as connection:
        committed = {record.block.hex() for record in offline.committed_blocks(connection)}
    for server in config.data_servers:
        exit_status, report = command(cluster, "replica", "verify", str(server.directory), state=False)
        found += [f"replica verify of data-{server.number}: {line}" for line in bad_copies(report, committed)]
        if exit_status not in (0, 1):
            found.append(f"replica verify of data-{server.number}: {exit_status}, {report}")
    return found + unexpected_lines(cluster)


def bad_copies(report: Any, committed: set[str]) -> list[str]:
    """Return what `replica verify` found of committed blocks: nobody reads or repairs what is garbage.

    A server that was down while blocks were deleted holds them until inventories are compared.
    """
    if not isinstance(report, dict):
        return [str(report)]
    return [
        f"{replica['verdict']} {replica['block']}"
        for replica in report["replicas"]
        if replica["verdict"] != "good" and replica["block"] in committed
    ]
