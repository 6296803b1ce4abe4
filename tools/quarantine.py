"""The commands `quarantine list|show|restore|purge`: copies that lost a vote, seen, saved, destroyed.

A copy is put back into its place only if its bytes match the witness; otherwise its bytes go to a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from tools.cluster import LocalCluster
from tools.df import in_units
from tools.locate import CALL_SECONDS, add_state_option, find_cluster, typed
from tools.output import add_json_option, console, print_json, table
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.digest import block_digest
from wire.errors import QuorumfsError
from wire.methods import BookkeepingMethods, DataMethods

PAGE = 500
HEADER_BYTES = 4096
COLUMNS = ["server", "copy", "when", "bytes", "why"]


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add quarantine and its commands."""
    parser = subparsers.add_parser("quarantine", help="look at copies that lost a vote")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, help_text, run in (
        ("list", "list the copies of all data servers", run_list),
        ("show", "show why a copy is there", run_show),
        ("restore", "save a copy's bytes, or put it back if it is right after all", run_restore),
        ("purge", "destroy copies", run_purge),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--server", type=int, metavar="N", help="this data server only")
        if name in ("show", "restore"):
            command.add_argument("copy", help="its name, or the beginning of it")
        if name == "restore":
            command.add_argument("--to", type=Path, metavar="FILE", help="write the bytes to a new file")
        if name == "purge":
            command.add_argument("copy", nargs="*", help="names, or beginnings of them")
            command.add_argument("--all", action="store_true", help="all copies")
        add_state_option(command)
        add_json_option(command)
        command.set_defaults(run=run)


def run_list(arguments: argparse.Namespace) -> int:
    """List the copies; exit status 1 if one data server did not answer."""
    copies, silent = find(find_cluster(arguments.state), arguments.server)
    _tell_silent(silent)
    if arguments.json:
        print_json(copies)
    elif copies:
        rows = [
            [
                f"data-{copy['server']}",
                copy["name"],
                escape(str(copy.get("when", ""))),
                in_units(copy["bytes"]),
                escape(str(copy.get("note", ""))),
            ]
            for copy in copies
        ]
        console().print(table(COLUMNS, rows))
    elif not silent:
        print("nothing is in quarantine")
    return int(bool(silent))


def _tell_silent(silent: dict[int, str]) -> None:
    for number, why in silent.items():
        print(f"quorumfs: data-{number} does not answer, and its copies are left out: {why}", file=sys.stderr)


def run_show(arguments: argparse.Namespace) -> int:
    """Show all that is known of one copy."""
    cluster = find_cluster(arguments.state)
    copy = find_one(cluster, arguments, arguments.copy)
    with _client(cluster, "metaserver") as client:
        block = bytes.fromhex(copy["block"])
        paths: list[bytes] = []
        for ino in client.call(CALL_SECONDS, BookkeepingMethods.files_of_block, block):
            paths += client.call(CALL_SECONDS, BookkeepingMethods.paths_of, ino, 1)
    copy["files"] = [path.decode(errors="backslashreplace") for path in paths]
    if arguments.json:
        print_json(copy)
    else:
        for name, value in copy.items():
            print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    """Save a copy's bytes, or put it back."""
    cluster = find_cluster(arguments.state)
    copy = find_one(cluster, arguments, arguments.copy)
    with _client(cluster, f"data-{copy['server']}") as client:
        data = client.call(CALL_SECONDS, DataMethods.quarantine_read, copy["name"])[HEADER_BYTES:]
        if arguments.to is not None:
            _save(arguments.to, data)
            said = {"copy": copy["name"], "bytes": len(data), "file": str(arguments.to)}
        else:
            outcome = _put_back(cluster, client, bytes.fromhex(copy["block"]), data)
            said = {"copy": copy["name"], "bytes": len(data), "outcome": outcome}
    if arguments.json:
        print_json(said)
    else:
        print(", ".join(f"{name}: {value}" for name, value in said.items()))
    return 0


def _save(target: Path, data: bytes) -> None:
    """Write a new file, whole or not at all. Raises ConfigError."""
    try:
        with target.open("xb") as file, ExitStack() as undo:
            undo.callback(target.unlink)
            file.write(data)
            file.flush()
            undo.pop_all()
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}; choose a new file") from None


def _put_back(cluster: LocalCluster, client: BlockingClient, block: bytes, data: bytes) -> str:
    with _client(cluster, "metaserver") as meta:
        (witness,) = meta.call(CALL_SECONDS, BookkeepingMethods.witnesses, [block])
    if witness is None:
        raise ClusterError("no file has this block any more; save its bytes with --to FILE")
    digest = block_digest(data)
    if digest != witness.digest or len(data) != witness.length:
        raise ClusterError(
            "these bytes are not those that were committed, and are not put back; save them with --to FILE"
        )
    return client.call(CALL_SECONDS, DataMethods.repair, block, digest, data, "restored from quarantine")


def run_purge(arguments: argparse.Namespace) -> int:
    """Destroy copies."""
    if arguments.all == bool(arguments.copy):
        raise ConfigError(
            f"name the copies to destroy, or say --all; see: {typed('quarantine list', arguments.state)}"
        )
    cluster = find_cluster(arguments.state)
    silent: dict[int, str] = {}
    if arguments.all:
        going, silent = find(cluster, arguments.server)
        _tell_silent(silent)
    else:
        going = [find_one(cluster, arguments, name) for name in arguments.copy]
    removed = 0
    for number in sorted({copy["server"] for copy in going}):
        names = [copy["name"] for copy in going if copy["server"] == number]
        with _client(cluster, f"data-{number}") as client:
            removed += client.call(CALL_SECONDS, DataMethods.quarantine_remove, names)
    if arguments.json:
        print_json({"destroyed": removed})
    else:
        print(f"{removed} copies destroyed")
    return int(bool(silent))


def find(cluster: LocalCluster, number: int | None) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return the copies of one data server, or of all that answer, and who does not answer for what reason.

    Each copy also has its "server".

    Raises:
        ConfigError: there is no such server. QuorumfsError: the one that is asked for does not answer.
    """
    numbers = [server.number for server in cluster.config.data_servers]
    if number is not None and number not in numbers:
        raise ConfigError(f"there is no data server {number}; choose 1 to {len(numbers)}")
    found: list[dict[str, Any]] = []
    silent: dict[int, str] = {}
    for chosen in numbers if number is None else [number]:
        try:
            found += [{"server": chosen, **copy} for copy in _copies_on(cluster, chosen)]
        except QuorumfsError as error:
            if number is not None:
                raise
            silent[chosen] = error.message
    return found, silent


def _copies_on(cluster: LocalCluster, number: int) -> list[dict[str, Any]]:
    copies: list[dict[str, Any]] = []
    with _client(cluster, f"data-{number}") as client:
        after = ""
        while page := client.call_once(CALL_SECONDS, DataMethods.quarantine_list, after, PAGE):
            copies += page
            after = page[-1]["name"]
    return copies


def find_one(cluster: LocalCluster, arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the one copy whose name begins so. Raises ConfigError if there is none, or several."""
    if not name:  # the beginning of all, and so of the only one
        raise ConfigError(f"name the copy; see: {typed('quarantine list', arguments.state)}")
    copies, silent = find(cluster, arguments.server)
    found = [copy for copy in copies if copy["name"].startswith(name)]
    if len(found) != 1:
        said = "is not in quarantine" if not found else f"is the beginning of {len(found)} copies"
        asked = f" (not asked: {', '.join(f'data-{each}' for each in silent)}, down)" if silent else ""
        see = typed("quarantine list", arguments.state)
        raise ConfigError(f"{name} {said}{asked}; see: {see}, and choose with --server")
    return found[0]


@contextmanager
def _client(cluster: LocalCluster, name: str) -> Iterator[BlockingClient]:
    client = BlockingClient([cluster.address(name)], cluster.config.rpc)
    try:
        yield client
    finally:
        client.close()
