"""The command `scrub`: have every replica read and checked now, and watch it; or see how far it is.

The mediator scrubs by itself within the period that the configuration sets. This must not read blocks itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Set
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tools.locate import CALL_SECONDS, add_state_option, find_cluster, mediator_client, typed
from tools.output import add_json_option, console, print_json, table
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.methods.common import CommonMethods
from wire.methods.mediator import MediatorMethods

LOOK_SECONDS = 0.2
COLUMNS = ["server", "is", "checked", "corrupt", "missing", "repaired", "bytes", "seconds", "last full pass"]


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add scrub."""
    parser = subparsers.add_parser("scrub", help="check every replica against its witness, and repair it")
    parser.add_argument("--now", action="store_true", help="begin now, and wait for the end")
    parser.add_argument("--server", type=int, metavar="N", help="this data server only")
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Scrub, or look. Exit status 1 if something was found that could not be repaired."""
    cluster = find_cluster(arguments.state)
    number, count = arguments.server or 0, cluster.config.quorum.servers
    if arguments.server is not None and not 1 <= number <= count:
        raise ConfigError(f"there is no data server {arguments.server}; choose 1 to {count}")
    client = mediator_client(cluster)
    try:
        passes: list[dict[str, Any]] = client.call(CALL_SECONDS, MediatorMethods.scrub, number, arguments.now)
        if arguments.now:
            passes = watch(client, number, passes)
    finally:
        client.close()
    if arguments.json:
        print_json(passes)
    elif passes:
        console().print(table(COLUMNS, [_row(scrub) for scrub in passes]))
    else:
        print(f"nothing was scrubbed yet; begin it with: {typed('scrub --now', arguments.state)}")
    return int(any(is_bad(scrub) for scrub in passes))


def is_bad(scrub: dict[str, Any]) -> bool:
    """Tell whether a pass found more than was repaired."""
    return bool(scrub["corrupt"] + scrub["missing"] > scrub["repaired"])


def when(time_ns: int) -> str:
    """Return a time for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns / 1e9)) if time_ns else "never"


def watch(client: BlockingClient, number: int, passes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Wait for the passes' end with a bar for each; return how they ended.

    Raises:
        ClusterError: a server went down meanwhile.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as bars:
        tasks = {p["server"]: bars.add_task(f"scrub of data-{p['server']}", total=None) for p in passes}
        while True:
            for scrub in passes:
                done = scrub["checked_bytes"]
                total = done if scrub["ended_ns"] else max(scrub["total_bytes"], done)
                bars.update(tasks[scrub["server"]], completed=done, total=total)
            left = tasks.keys() - {scrub["server"] for scrub in passes if scrub["ended_ns"]}
            if not left:
                return passes
            _refuse_down(client, left)
            time.sleep(LOOK_SECONDS)
            found = client.call(CALL_SECONDS, MediatorMethods.scrub, number, False)
            passes = [scrub for scrub in found if scrub["server"] in tasks]


def _refuse_down(client: BlockingClient, numbers: Set[int]) -> None:
    """Raise ClusterError if one of these data servers is down: its scrub does not go on before it is up."""
    servers = client.call(CALL_SECONDS, CommonMethods.status)["servers"]
    if down := [s["number"] for s in servers if s["number"] in numbers and s["state"] == "down"]:
        names = ", ".join(f"data-{number}" for number in down)
        raise ClusterError(f"{names} went down while being scrubbed; that goes on when it is up again")


def _row(scrub: dict[str, Any]) -> list[str]:
    names = ("checked", "corrupt", "missing", "repaired", "checked_bytes")
    numbers = [str(scrub[name]) for name in names]
    last = when(scrub["last_full_ns"])
    return [f"data-{scrub['server']}", scrub["state"], *numbers, f"{scrub['seconds']:.1f}", last]
