"""The command `replica`: look at a stopped data server's directory, without the server.

Exit status: 0 healthy, 1 damage was found, 2 it cannot be looked at as asked. It must not change anything.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dataserver.offline import Listing, Region, Replica, locate, read, segment_bytes
from tools.locate import typed
from tools.output import add_json_option, bytes_text, coloured, console, print_json, table
from wire.config import ConfigError
from wire.messages import BLOCK_ID_BYTES


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add replica, with ls, locate and verify."""
    parser = subparsers.add_parser("replica", help="look at a stopped data server's directory")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run, told in (
        ("ls", run_ls, "list the blocks, and where each one is"),
        ("locate", run_locate, "print the file and the offsets of one block"),
        ("verify", run_verify, "read every block and check its bytes against its digest"),
    ):
        action = actions.add_parser(name, help=told)
        action.add_argument("directory", metavar="DIR", type=Path, help="the data server's directory")
        if name == "locate":
            action.add_argument("block", metavar="BLOCK", help="the block's id in hex, as `explain` shows it")
        add_json_option(action)
        action.set_defaults(run=run)


def run_ls(arguments: argparse.Namespace) -> int:
    """List the replicas of a directory."""
    listing = _read(arguments.directory, verify=False)
    if arguments.json:
        print_json(_plain_listing(listing))
    else:
        rows = [
            (r.block.hex(), str(r.length), r.path.name, str(r.header_offset), str(r.payload_offset))
            for r in listing.replicas
        ]
        console().print(table(("block", "length", "segment", "header at", "bytes at"), rows))
        _show_end(listing, "")
    return 0 if listing.healthy else 1


def run_verify(arguments: argparse.Namespace) -> int:
    """Check all replicas of a directory."""
    listing = _read(arguments.directory, verify=True)
    bad = [replica for replica in listing.replicas if replica.verdict == "corrupt"]
    if arguments.json:
        print_json(_plain_listing(listing))
    else:
        for replica in bad:
            place = f"{replica.path} at {replica.payload_offset}, {replica.length} bytes"
            console().print(f"{coloured('corrupt')} {replica.block.hex()} in {escape(place)}", soft_wrap=True)
        _show_end(listing, f", {len(bad)} corrupt")
    return 0 if listing.healthy else 1


def run_locate(arguments: argparse.Namespace) -> int:
    """Print where one block is, so that `dd conv=notrunc` finds it."""
    try:
        block = bytes.fromhex(arguments.block)
    except ValueError:
        block = b""
    if len(block) != BLOCK_ID_BYTES:
        raise ConfigError(f"{arguments.block}: a block id is {2 * BLOCK_ID_BYTES} hex digits")
    replica = locate(arguments.directory, block)
    if replica is None:
        raise ConfigError(
            f"{arguments.directory} holds no block {arguments.block} that can be read; "
            f"see: {typed(f'replica ls {shlex.quote(str(arguments.directory))}', None)}"
        )
    if arguments.json:
        print_json(_plain_replica(replica))
    else:
        print(f"file            {replica.path}")
        print(f"header offset   {replica.header_offset}")
        print(f"payload offset  {replica.payload_offset}")
        print(f"length          {replica.length}")
    return 0


def _read(directory: Path, *, verify: bool) -> Listing:
    """Read a directory with a progress bar, which only a terminal sees."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty(), transient=True
    ) as bars:
        bar = bars.add_task("reading", total=segment_bytes(directory))
        return read(directory, verify=verify, looked_at=lambda size: bars.advance(bar, size))


def _show_end(listing: Listing, more: str) -> None:
    for region in listing.damage:
        place = f"{region.path} at {region.offset}, {region.length} bytes"
        console().print(f"{coloured('corrupt')} {escape(place)}: {region.reason}", soft_wrap=True)
    total = bytes_text(sum(replica.length for replica in listing.replicas))
    print(
        f"data server {listing.number} of cluster {listing.cluster}: {len(listing.replicas)} blocks, "
        f"{total}{more}, {len(listing.damage)} damaged regions"
    )
    if listing.given:
        print(f"{listing.given} more lie in shared memory: the server takes them in when it is started")


def _plain_listing(listing: Listing) -> dict[str, Any]:
    return {
        "cluster": listing.cluster,
        "number": listing.number,
        "given": listing.given,
        "healthy": listing.healthy,
        "replicas": [_plain_replica(replica) for replica in listing.replicas],
        "damage": [_plain_region(region) for region in listing.damage],
    }


def _plain_replica(replica: Replica) -> dict[str, Any]:
    plain = replica._asdict()
    return plain | {"block": replica.block.hex(), "digest": replica.digest.hex(), "path": str(replica.path)}


def _plain_region(region: Region) -> dict[str, Any]:
    return region._asdict() | {"path": str(region.path)}
