"""The command `df`: for each data server how many bytes are live, dead and quarantined, and how much is free.

It must not change anything, and works whatever is down.
"""

from __future__ import annotations

import argparse
from typing import Any

from tools.cluster import LocalCluster
from tools.locate import CALL_SECONDS, add_state_option, find_cluster
from tools.output import add_json_option, coloured, console, print_json, table
from wire.blocking import BlockingClient
from wire.errors import QuorumfsError
from wire.methods import BookkeepingMethods, CommonMethods

COLUMNS = ["server", "is", "live", "dead", "quarantined", "free", "of"]
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add df."""
    parser = subparsers.add_parser(
        "df", help="show the bytes of each data server: live, dead, quarantined, free"
    )
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the bytes of all data servers; exit status 1 if one did not answer."""
    rows = look(find_cluster(arguments.state))
    if arguments.json:
        print_json(rows)
    else:
        console().print(table(COLUMNS, [_cells(row) for row in rows]))
    return int(any(row["state"] == "down" for row in rows))


def look(cluster: LocalCluster) -> list[dict[str, Any]]:
    """Ask every data server and the metadata server.

    Returns:
        For each data server "server", "state" ("up" or "down") and, if it is up, "live_bytes" (files refer to
        them), "dead_bytes" (in blocks here that files do not refer to), "quarantined_bytes", "free_bytes",
        "total_bytes".

    Raises:
        QuorumfsError: the metadata server does not answer.
    """
    with_client = _Clients(cluster)
    live = with_client.call("metaserver", BookkeepingMethods.referenced_bytes)
    rows = []
    for server in cluster.config.data_servers:
        try:
            status = with_client.call(f"data-{server.number}", CommonMethods.status)
        except QuorumfsError:
            rows.append({"server": server.number, "state": "down"})
            continue
        rows.append({"server": server.number, "state": "up", **split(status, live)})
    return rows


def split(status: dict[str, Any], live: int) -> dict[str, int]:
    """Part what a data server holds into live and dead bytes, given how many bytes files refer to."""
    held = int(status["bytes_live"])
    return {
        "live_bytes": min(held, live),
        "dead_bytes": max(0, held - live),
        "quarantined_bytes": int(status["bytes_quarantined"]),
        "free_bytes": int(status["free_bytes"]),
        "total_bytes": int(status["total_bytes"]),
    }


def in_units(count: float) -> str:
    """Return a number of bytes for people, as "1.5 MiB"."""
    for unit in UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {UNITS[-1]}"


def _cells(row: dict[str, Any]) -> list[str]:
    names = ("live_bytes", "dead_bytes", "quarantined_bytes", "free_bytes", "total_bytes")
    told = [in_units(row[name]) if name in row else "" for name in names]
    return [f"data-{row['server']}", coloured(row["state"]), *told]


class _Clients:
    """One call to one server."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    def call(self, name: str, method: Any) -> Any:
        client = BlockingClient([self._cluster.address(name)], self._cluster.config.rpc)
        try:
            return client.call_once(CALL_SECONDS, method)
        finally:
            client.close()
