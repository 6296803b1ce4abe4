"""The command `refill`: begin the refill of a data server by hand, and watch it.

The mediator refills by itself whoever comes back; this is for those who wonder. It must not move
blocks itself.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from datetime import timedelta
from typing import Any

from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tools.faults import server_name
from tools.locate import CALL_SECONDS, add_state_option, find_cluster, mediator_client
from tools.output import add_json_option, print_json
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.methods.common import CommonMethods
from wire.methods.mediator import MediatorMethods

LOOK_SECONDS = 0.2


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add refill."""
    parser = subparsers.add_parser("refill", help="give a data server everything it lacks, and watch it")
    parser.add_argument("server", help="the data server's number")
    parser.add_argument("--no-wait", action="store_true", help="begin it and return")
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Begin a refill; wait for its end with a progress bar."""
    cluster = find_cluster(arguments.state)
    if not server_name(cluster, arguments.server).startswith("data-"):
        raise ConfigError(
            f"{arguments.server} is no data server; choose 1 to {cluster.config.quorum.servers}"
        )
    number = int(arguments.server.removeprefix("data-"))
    client = mediator_client(cluster)
    try:
        client.call(CALL_SECONDS, MediatorMethods.refill, number)
        progress = _progress(client, number) if arguments.no_wait else watch_refill(client, number)
    finally:
        client.close()
    if arguments.json:
        print_json(progress)
    else:
        print(f"data-{number}: {in_words(progress)}")
    return 1 if progress["state"] == "failed" else 0


def in_words(progress: dict[str, Any]) -> str:
    """Return a refill's progress, as the mediator tells it, in words."""
    done = f"{progress['done']} of {progress['total']} blocks refilled"
    if progress["failed"]:
        done += f", {progress['failed']} could not be"
        done += "" if progress["error"] else ": too few good replicas are up"
    if progress["error"]:
        done += f" ({progress['error']})"
    return f"{done}, going on" if progress["state"] == "running" else done


def what_is_left(progress: dict[str, Any]) -> str:
    """Return how much of a refill, as the mediator tells it, is left, how fast it goes, and for how long."""
    if progress["comparing"]:
        gone, of = progress["gone_through"], progress["to_compare"]
        return f"comparing what it has with what it should have: {gone} of {of} blocks gone through"
    words = f"{progress['done']} of {progress['total']} blocks, {progress['blocks_left']} left"
    words += f" ({filesize.decimal(progress['bytes_left'])})"
    if rate := progress["bytes_per_second"]:
        words += f", {filesize.decimal(int(rate))}/s"
    return f"{words}{_time_left(progress)}"


def _time_left(progress: dict[str, Any]) -> str:
    told, least, most = (progress[f"eta_{name}seconds"] for name in ("", "least_", "most_"))
    if told is not None:
        return f", about {_duration(told)} to go"
    if least is None:
        return ""
    if most is None:
        return f", {_duration(least)} or more to go"
    return f", between {_duration(least)} and {_duration(most)} to go" if least else ", about to end"


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=math.ceil(seconds))


def _progress(client: BlockingClient, number: int) -> dict[str, Any]:
    """Return a refill's progress; looking, unlike asking for a refill, does not begin another one.

    A mediator that was started meanwhile may know of none, and is asked for it.
    """
    status: dict[str, Any] = client.call(CALL_SECONDS, CommonMethods.status)
    found: dict[str, Any] | None = next(s for s in status["servers"] if s["number"] == number)["refill"]
    return client.call(CALL_SECONDS, MediatorMethods.refill, number) if found is None else found


def watch_refill(client: BlockingClient, number: int) -> dict[str, Any]:
    """Wait for a refill's end with a progress bar; return its progress as the mediator tells it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task(f"refill of data-{number}", total=None, left="")
        while (progress := _progress(client, number))["state"] == "running":
            bars.update(bar, left=what_is_left(progress))
            if not progress["comparing"]:
                bars.update(bar, completed=progress["done"], total=progress["total"])
            time.sleep(LOOK_SECONDS)
    return progress
