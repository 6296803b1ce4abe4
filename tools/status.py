"""The command `status`: who is up, whether files can be written, refills, refusals, and what to do.

Exit status: 0 healthy, 1 degraded, 3 not running. It must not change anything, and it works whatever is down.
"""

from __future__ import annotations

import argparse
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tools.cluster import LocalCluster, ProcessStatus
from tools.health import EXIT_STATUS, Health, ask_mediator, ask_metaserver, assess, look
from tools.locate import add_state_option, as_typed, find_cluster
from tools.output import FittingTable, add_json_option, coloured, console, print_json
from tools.refill import what_is_left
from tools.scrub import when

WATCH_SECONDS = 0.5
REFUSALS_SHOWN = 5
COLUMNS = ["process", "is", "pid", "at", "blocks", "quarantined", "last scrub", "the mediator sees"]
SPARE_COLUMNS = ["last scrub", "pid", "quarantined"]
"""What a narrow terminal does without; --json has it."""


class Picture(NamedTuple):
    """Everything that a status shows, taken at one moment."""

    cluster: LocalCluster
    processes: list[ProcessStatus]
    mediator: dict[str, Any] | None
    health: Health
    state: Path | None
    """The --state that commands need to find the cluster."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add status."""
    parser = subparsers.add_parser("status", help="show who is up, the quorum, refills and refusals")
    parser.add_argument("--watch", action="store_true", help="show it again and again until Ctrl-C")
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the status once, or until interrupted."""
    cluster = find_cluster(arguments.state)
    if arguments.watch:
        return watch(cluster, arguments.state, as_json=arguments.json)
    picture = take(cluster, arguments.state)
    if arguments.json:
        print_json(as_data(picture))
    else:
        console().print(draw(picture))
    return EXIT_STATUS[picture.health.word]


def take(cluster: LocalCluster, state: Path | None = None) -> Picture:
    """Look at a cluster now."""
    mediator, metaserver = ask_mediator(cluster), ask_metaserver(cluster)
    processes = look(cluster, mediator, metaserver)
    health = assess(cluster.config.quorum, processes, mediator, metaserver, state)
    return Picture(cluster, processes, mediator, health, state)


def watch(cluster: LocalCluster, state: Path | None = None, *, as_json: bool) -> int:
    """Show the status until Ctrl-C; as JSON, one picture after the other."""
    out, picture = console(), take(cluster, state)
    try:
        if as_json or not out.is_terminal:
            while True:
                if as_json:
                    print_json(as_data(picture))
                else:
                    out.print(draw(picture))
                time.sleep(WATCH_SECONDS)
                picture = take(cluster, state)
        with Live(draw(picture), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                picture = take(cluster, state)
                live.update(draw(picture), refresh=True)
    except KeyboardInterrupt:
        return EXIT_STATUS[picture.health.word]


def as_data(picture: Picture) -> dict[str, Any]:
    """Return a picture for programs."""
    cluster, mediator, health = picture.cluster, picture.mediator, picture.health
    quorum = cluster.config.quorum
    processes = [process._asdict() for process in picture.processes]
    return {
        "state_directory": cluster.directory,
        "cluster": cluster.config.cluster,
        "health": health.word,
        "writable": health.writable,
        "reason": health.reason,
        "advice": health.advice,
        "quorum": {"N": quorum.servers, "Qr": quorum.read, "Qw": quorum.write},
        "rpc": cluster.config.rpc,
        "servers": [process for process in processes if not process["name"].startswith("mount-")],
        "mounts": [process for process in processes if process["name"].startswith("mount-")],
        "mediator": mediator,
    }


def draw(picture: Picture) -> RenderableType:
    """Return a picture for people."""
    cluster, processes, mediator, health, state = picture
    quorum = cluster.config.quorum
    parts: list[RenderableType] = [
        Text.from_markup(
            f"{coloured(health.word)}: N={quorum.servers} data servers, Qr={quorum.read}, Qw={quorum.write}; "
            + ("files can be read and written" if health.writable else "no writes")
        )
    ]
    if not health.writable:
        parts.append(Text(f"why: {health.reason}"))
    parts += [Text(f"to do: {line}") for line in health.advice]
    seen = {f"data-{server['number']}": server for server in (mediator or {}).get("servers", [])}
    rows = [
        [
            process.name,
            coloured(process.state),
            str(process.pid or ""),
            escape(process.address),
            *_seen(seen.get(process.name)),
        ]
        for process in processes
    ]
    parts += [Text(""), FittingTable(COLUMNS, rows, SPARE_COLUMNS)]
    bars = [_bar(server) for server in seen.values() if _is_refilling(server)]
    if bars:
        parts += [Text(""), *bars]
    if mediator is not None:
        parts += [Text(""), Text(risk_in_words(mediator["risk"], quorum.write))]
    parts += _refusals((mediator or {}).get("refusals", []), state)
    return Group(*parts)


def _seen(server: dict[str, Any] | None) -> list[str]:
    """Return the cells of what the mediator knows of a data server."""
    if server is None:
        return ["", "", "", ""]
    seen = f"{coloured(server['state'])} {escape(server['error'])}".strip()
    if server.get("full"):
        seen += " (full)"
    scrub = server.get("scrub") or {}
    last = when(scrub["last_full_ns"]) if scrub else ""
    return [_number(server["blocks"]), _number(server["quarantined"]), last, seen]


def _number(value: object) -> str:
    return "" if value is None else str(value)


def _is_refilling(server: dict[str, Any]) -> bool:
    return bool(server["state"] == "refilling")


def _bar(server: dict[str, Any]) -> RenderableType:
    progress = server.get("refill") or {}
    done, total = int(progress.get("done", 0)), int(progress.get("total", 0))
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        f"refill of data-{server['number']}",
        ProgressBar(total=max(total, 1), completed=done, width=40),
        what_is_left(progress) if progress else "",
    )
    return grid


def risk_in_words(risk: dict[str, Any], write_quorum: int) -> str:
    """Return the time at risk, as the mediator tells it, in words."""
    watched = timedelta(seconds=int(risk["watched_seconds"]))
    return (
        f"time at risk: {risk['block_seconds']:.0f} block-seconds in {watched}; now {risk['blocks']} blocks"
        f" are known to have fewer than Qw={write_quorum} good copies"
    )


def _refusals(refusals: list[dict[str, Any]], state: Path | None) -> list[RenderableType]:
    if not refusals:
        return []
    lines: list[RenderableType] = [Text(""), Text("last refusals, newest first:")]
    for refusal in refusals[:REFUSALS_SHOWN]:
        when = datetime.fromtimestamp(refusal["when_ns"] / 1e9).strftime("%H:%M:%S")
        why = as_typed(refusal["message"], state)
        lines.append(Text(f"  {when} {refusal['operation']} of inode {refusal['ino']}: {why}"))
    return lines
