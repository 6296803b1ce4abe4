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

from tests.chaos.cluster import ChaosCluster
from tests.conftest import unexpected_lines
from tests.support import ROOT
from tools.health import ask_mediator

WHOLE_SECONDS = 120.0
COMMAND_SECONDS = 120.0
LOOK_SECONDS = 1.0


def command(cluster: ChaosCluster, *words: str, state: bool = True) -> tuple[int, Any]:
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
    for server in cluster.config.data_servers:
        exit_status, report = command(cluster, "replica", "verify", str(server.directory), state=False)
        if exit_status:
            found.append(f"replica verify of data-{server.number}: {exit_status}, {str(report)[:500]}")
    return found + unexpected_lines(cluster)
