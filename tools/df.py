"""The command `df`: how many bytes of each data server are live, dead, of metadata copies, quarantined, free.

It must not change anything, and works whatever is down.
"""

from __future__ import annotations

import argparse
from typing import Any

from mediator.manifest import is_reserved
from tools.cluster import LocalCluster
from tools.locate import CALL_SECONDS, add_state_option, find_cluster
from tools.output import add_json_option, coloured, console, print_json, table
from wire.blocking import BlockingClient
from wire.errors import QuorumfsError
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods, CommonMethods, DataMethods

COLUMNS = ["server", "is", "live", "metadata copies", "dead", "quarantined", "free", "of"]
PAGE = 4096
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add df."""
    parser = subparsers.add_parser(
        "df", help="show the bytes of each data server: live, metadata copies, dead, quarantined, free"
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
        them), "copies_bytes" (in copies of the metadata), "dead_bytes" (in blocks here that nothing refers
        to), "quarantined_bytes", "free_bytes", "total_bytes".

    Raises:
        QuorumfsError: the metadata server does not answer.
    """
    with_client = _Clients(cluster)
    live = with_client.call("metaserver", BookkeepingMethods.referenced_bytes)
    rows = []
    for server in cluster.config.data_servers:
        try:
            status = with_client.call(f"data-{server.number}", CommonMethods.status)
            copies = with_client.copies_bytes(f"data-{server.number}")
        except QuorumfsError:
            rows.append({"server": server.number, "state": "down"})
            continue
        rows.append({"server": server.number, "state": "up", **split(status, live, copies)})
    return rows


def split(status: dict[str, Any], live: int, copies: int) -> dict[str, int]:
    """Part what a data server holds, given how many bytes files refer to and how many are of copies."""
    held = int(status["bytes_live"]) - copies
    return {
        "live_bytes": max(0, min(held, live)),
        "copies_bytes": copies,
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
    names = ("live_bytes", "copies_bytes", "dead_bytes", "quarantined_bytes", "free_bytes", "total_bytes")
    told = [in_units(row[name]) if name in row else "" for name in names]
    return [f"data-{row['server']}", coloured(row["state"]), *told]


class _Clients:
    """One call to one server."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    def call(self, name: str, method: Any, *values: Any) -> Any:
        client = BlockingClient([self._cluster.address(name)], self._cluster.config.rpc)
        try:
            return client.call_once(CALL_SECONDS, method, *values)
        finally:
            client.close()

    def copies_bytes(self, name: str) -> int:
        """Return the length of the blocks of copies of the metadata, whose ids come first."""
        length = 0
        after = b""
        while True:
            page: list[BlockRecord] = self.call(name, DataMethods.inventory, after, PAGE)
            found = [record for record in page if is_reserved(record.block)]
            length += sum(record.length for record in found)
            if len(found) < PAGE:
                return length
            after = found[-1].block
