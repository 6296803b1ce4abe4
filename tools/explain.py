"""The command `explain`: who holds each block of a file, how each votes now, and why it was refused last.

It asks the mediator and prints; the verdicts are the mediator's. It must not repair or change anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from tools.locate import CALL_SECONDS, add_state_option, as_typed, find_cluster, find_inode, mediator_client
from tools.output import add_json_option, bytes_text, coloured, console, print_json, table
from wire.hints import how_to_change_quorum
from wire.methods.common import CommonMethods
from wire.methods.mediator import MediatorMethods

EXPLAIN_SECONDS = 300.0
"""Every replica of every block is read for it."""
ROWS = 40


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add explain."""
    parser = subparsers.add_parser("explain", help="show how each replica of a file votes now, and refusals")
    parser.add_argument("path", type=Path, help="a file on the mount, or its path from the mount point on")
    parser.add_argument(
        "--all", action="store_true", help=f"list all blocks, also of those over {ROWS} that are good"
    )
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain one file."""
    cluster = find_cluster(arguments.state, arguments.path)
    client = mediator_client(cluster)
    try:
        ino = find_inode(cluster, client, arguments.path, arguments.state)
        report = client.call(EXPLAIN_SECONDS, MediatorMethods.explain, ino)
        status = client.call(CALL_SECONDS, CommonMethods.status)
        report |= {
            "writable": status["writable"] and not status["no_room"],
            "reason": status["reason"] or status["no_room"],
        }
    finally:
        client.close()
    if arguments.json:
        print_json(report)
    else:
        change = how_to_change_quorum(cluster.config)
        show(arguments.path, report, change, arguments.state, everything=arguments.all)
    return 0


def show(
    path: Path, report: dict[str, Any], change: str, state: Path | None = None, *, everything: bool
) -> None:
    """Print an explanation for people.

    Args:
        path: the file, as the user named it.
        report: what the mediator answered, and whether files can be written.
        change: how another Qr or Qw comes to hold.
        state: the --state option.
        everything: list all blocks.
    """
    out = console()
    quorum, blocks = report["quorum"], report["blocks"]
    names = ", ".join(_text(name) for name in report["paths"]) or "no name any more"
    out.print(f"{path}: inode {report['ino']} ({names}), {bytes_text(report['size'])}", markup=False)
    out.print(f"N={quorum['N']} data servers, Qr={quorum['Qr']}, Qw={quorum['Qw']}")
    if blocks:
        out.print()
        out.print(_blocks_table(select(blocks, everything), quorum["N"]))
        if (left := len(blocks) - len(select(blocks, everything))) > 0:
            out.print(f"... and {left} more blocks, all replicas good (--all lists them)")
    else:
        out.print("It has no blocks: it is empty, a hole, or no regular file.")
    if hint := advice([block["verdicts"] for block in blocks], quorum, change):
        out.print(f"\n{as_typed(hint, state)}", markup=False)
    if report.get("cut"):
        out.print("The file has more blocks: only the first ones were asked to vote.")
    if not report["writable"]:
        out.print(f"\nWrites are refused now: {as_typed(report['reason'], state)}", markup=False)
    if (refusal := report.get("last_refusal")) is not None:
        when = datetime.fromtimestamp(refusal["when_ns"] / 1e9).strftime("%H:%M:%S")
        out.print()
        why = as_typed(refusal["message"], state)
        out.print(f"Last refused at {when}: {refusal['operation']}: {why}", markup=False)
        if refusal.get("detail"):
            out.print(f"  {json.dumps(refusal['detail'], default=str)}", markup=False)


def advice(votes: Sequence[Mapping[str, str]], quorum: Mapping[str, int], change: str) -> str:
    """Say how replicas that are not good become so, "" if nothing is to be said.

    Args:
        votes: the verdict of each server, for each block.
        quorum: N, Qr and Qw.
        change: how another Qr or Qw comes to hold.
    """
    blocks = [list(verdicts.values()) for verdicts in votes]
    if any("good" not in block and "down" not in block for block in blocks):
        return "No good replica is left of a block: write the file anew, or bring a disk back that has one."
    if any(block.count("corrupt") > quorum["N"] - quorum["Qr"] for block in blocks):
        return (
            "More replicas are corrupt than Qr bears, and yet a good one may be left. It is taken if Qr = 1 "
            f"and Qw = {quorum['N']} stand in cluster.toml: {change}, "
            "read the file, which has it repaired, and change it back likewise."
        )
    if any("down" in block and not _is_enough(block, quorum["Qr"]) for block in blocks):
        return (
            "Too few replicas are good while others are down. Start these, as `quorumfs status` says: "
            "a read is answered then, and has the corrupt and missing ones repaired."
        )
    if not any(verdict in ("corrupt", "missing") for block in blocks for verdict in block):
        return ""
    repaired = "Corrupt and missing replicas are repaired some seconds after a read has asked them to vote"
    if any("down" in block for block in blocks):
        return f"{repaired}."
    return f"{repaired}; all of them now by: `quorumfs scrub --now`"


def _is_enough(block: Sequence[str], read_quorum: int) -> bool:
    """Tell whether a block can be read by these verdicts, if need be once the missing replicas are filled."""
    return "good" in block and block.count("good") + block.count("missing") >= read_quorum


def select(blocks: list[dict[str, Any]], everything: bool) -> list[dict[str, Any]]:
    """Return the blocks to list: all, or the first ones and those with a replica that is not good."""
    if everything or len(blocks) <= ROWS:
        return blocks
    return [
        block
        for index, block in enumerate(blocks)
        if index < ROWS or any(verdict != "good" for verdict in block["verdicts"].values())
    ]


def _blocks_table(blocks: list[dict[str, Any]], servers: int) -> Any:
    numbers = [str(number) for number in range(1, servers + 1)]
    rows = [
        [
            bytes_text(block["offset"]),
            escape(block["block"]),
            bytes_text(block["length"]),
            *(coloured(block["verdicts"].get(number, "?")) for number in numbers),
            coloured(block["outcome"]),
        ]
        for block in blocks
    ]
    return table(["at", "block", "length", *(f"data-{number}" for number in numbers), "a read now"], rows)


def _text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
