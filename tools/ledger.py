"""The command `ledger`: what was repaired, newest first. It must not change anything."""

from __future__ import annotations

import argparse
from typing import Any

from rich.markup import escape

from metaserver.ledger import MOST_ENTRIES
from tools.locate import CALL_SECONDS, add_state_option, find_cluster, mediator_client
from tools.output import add_json_option, coloured, console, print_json, table
from tools.scrub import when
from wire.config import ConfigError
from wire.methods.mediator import MediatorMethods

COLUMNS = ["when", "server", "was", "block", "file", "digest before", "digest after"]
DIGITS = 12


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ledger."""
    parser = subparsers.add_parser("ledger", help="show what was repaired, newest first")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="so many repairs (default: 50)")
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the newest repairs."""
    if not 1 <= arguments.limit <= MOST_ENTRIES:
        raise ConfigError(f"--limit {arguments.limit}: choose a number from 1 to {MOST_ENTRIES}")
    client = mediator_client(find_cluster(arguments.state))
    try:
        entries = client.call(CALL_SECONDS, MediatorMethods.ledger, arguments.limit)
    finally:
        client.close()
    if arguments.json:
        print_json(entries)
    elif entries:
        console().print(table(COLUMNS, [_row(entry) for entry in entries]))
    else:
        print("nothing was ever repaired")
    return 0


def _row(entry: dict[str, Any]) -> list[str]:
    files = ", ".join(entry.get("files", []))
    return [
        when(entry["when_ns"]),
        f"data-{entry['server']}",
        coloured(entry["verdict"]),
        entry["block"],
        escape(files),
        entry["digest_before"][:DIGITS],
        entry["digest_after"][:DIGITS],
    ]
