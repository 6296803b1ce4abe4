"""The command `fsck`: is everything as it must be, and what can be mended?

On a stopped cluster it reads (and with --repair mends) the metadata server's directory; on a running one
it asks the servers, and --repair has the data servers refilled. Exit status: 0 clean (or all mended),
1 something was found (and is left), 2 it cannot look.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mediator.refill import JUST_SECONDS
from metaserver import offline
from metaserver.check import CHECKS, DATABASE
from metaserver.repair import Action, repair
from tools.cluster import LocalCluster
from tools.locate import CALL_SECONDS, add_state_option, find_cluster, mediator_client, typed
from tools.output import add_json_option, bytes_text, console, nice_path, print_json, print_paths, table
from tools.progress import watching
from tools.refill import watch_refill
from tools.whole import (
    DIFFERING,
    LACKING,
    LOST,
    RULES,
    UNSEEN,
    Report,
    check_running,
    check_stopped,
    cut,
    is_running,
)
from wire.config import ConfigError
from wire.errors import QuorumfsError
from wire.methods import MediatorMethods

METADATA_CHECKS = {DATABASE.name, *(each.name for each in CHECKS)}
ROWS_SHOWN = 10


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add fsck."""
    parser = subparsers.add_parser("fsck", help="check that everything is as it must be, and mend it")
    parser.add_argument("--repair", action="store_true", help="mend what can be mended without losing data")
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, mend if asked to, and tell."""
    state: Path | None = arguments.state
    cluster = find_cluster(state)
    done: list[Action] = []
    copy: Path | None = None
    if is_running(cluster.config, state):
        report = _check(cluster, True, state)
        if arguments.repair and report.findings:
            done, report = _refill_until_whole(cluster, report, state)
    else:
        with cluster.lock():
            report = _check(cluster, False, state)
            if arguments.repair and report.findings:
                done, copy = _repair(cluster, report)
                report = _check(cluster, False, state)
    if arguments.json:
        print_json(_plain(report, done, copy))
    else:
        _show(report, done, copy, arguments.repair, state)
    return 1 if report.findings else 0


def _check(cluster: LocalCluster, online: bool, state: Path | None) -> Report:
    """Check one way or the other. Raises ConfigError when it cannot be looked at."""
    try:
        with watching("checking") as watch:
            return check_running(cluster.config, watch) if online else check_stopped(cluster.config, watch)
    except QuorumfsError as error:
        raise ConfigError(
            f"{error.message}; see which server is down with: {typed('status', state)}"
        ) from None


def _repair(cluster: LocalCluster, report: Report) -> tuple[list[Action], Path | None]:
    """Mend the metadata of a stopped cluster; return what was done, and where the copy from before is."""
    if not any(finding.check in METADATA_CHECKS for finding in report.findings):
        return [], None
    config = cluster.config
    with offline.opened(config.metaserver_directory, config.cluster) as connection:
        if not offline.is_whole(connection):
            return [], None
        copy = offline.keep_copy(connection, config.metaserver_directory)
        return repair(connection), copy


def _refill_until_whole(
    cluster: LocalCluster, report: Report, state: Path | None
) -> tuple[list[Action], Report]:
    """Have data servers filled; return what was done, and how it is then.

    A refill that ended just now is not begun anew by the mediator: a second round comes when it would be.
    """
    done = _refill(cluster, report)
    report = _check(cluster, True, state)
    if done and any(finding.check in (LACKING, DIFFERING) for finding in report.findings):
        time.sleep(JUST_SECONDS)
        done += _refill(cluster, report)
        report = _check(cluster, True, state)
    return done, report


def _refill(cluster: LocalCluster, report: Report) -> list[Action]:
    """Have the mediator fill what data servers lack of a running cluster; return what was done."""
    numbers: set[int] = set()
    for name, row in report.findings:
        numbers |= set(row["not_on"]) if name in (LACKING, LOST) else set()
        numbers |= {row["server"]} if name == DIFFERING else set()
    client = mediator_client(cluster)
    done = []
    try:
        for number in sorted(numbers):
            client.call(CALL_SECONDS, MediatorMethods.refill, number)
            said = watch_refill(client, number)
            done.append(Action(LACKING, f"refilled data-{number}: {said['done']} of {said['total']} blocks"))
    except QuorumfsError as error:
        done.append(Action(LACKING, f"went no further: {error.message}"))
    finally:
        client.close()
    return done


def _plain(report: Report, done: list[Action], copy: Path | None) -> dict[str, Any]:
    shown = cut(report.findings)
    return {
        "clean": not report.findings,
        "online": report.online,
        "blocks": report.blocks,
        "checks": [
            {
                "name": name,
                "rule": rule,
                "found": report.count(name),
                "rows": [finding.row for finding in shown if finding.check == name],
            }
            for name, rule in RULES.items()
        ],
        "lost_paths": report.lost_paths,
        "repaired": [action._asdict() for action in done],
        "copy": copy,
    }


def _show(report: Report, done: list[Action], copy: Path | None, repaired: bool, state: Path | None) -> None:
    for action in done:
        print(f"mended {action.check}: {action.done}")
    if copy is not None:
        print(f"the database as it was before: {nice_path(copy)} ({bytes_text(copy.stat().st_size)})")
    rows = []
    for name, rule in RULES.items():
        count = report.count(name)
        rows.append((name, f"[red]{count}[/red]" if count else "[green]0[/green]", rule))
    console().print(table(("check", "found", "rule"), rows))
    for name in RULES:
        found = [finding for finding in report.findings if finding.check == name]
        for finding in found[:ROWS_SHOWN]:
            told = ", ".join(f"{key} {_text(value)}" for key, value in finding.row.items())
            console().print(f"[red]{name}[/red]: ", end="")
            print(told)
        if len(found) > ROWS_SHOWN:
            print(f"... and {len(found) - ROWS_SHOWN} more of {name}; see them all with --json")
    if report.lost_paths:
        print("these files refer to blocks that no data server has, and cannot be read whole:")
        print_paths(report.lost_paths)
    print(_advice(report, repaired, state))


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _advice(report: Report, repaired: bool, state: Path | None) -> str:
    """Say how it is, and what to do about what was found, the most urgent first."""
    looked = f"{report.blocks} committed blocks, " + ("online" if report.online else "offline")
    if not report.findings:
        return f"clean: {len(RULES)} checks, {looked}"
    left = f"{len(report.findings)} findings ({looked})"
    mend = typed("fsck --repair", state)
    if any(finding.check in METADATA_CHECKS for finding in report.findings):
        if report.online:
            return f"{left}: stop the cluster with `{typed('down', state)}`, then mend it with `{mend}`"
        return f"{left}: {'cannot be mended without losing data' if repaired else f'mend with: {mend}'}"
    if report.count(UNSEEN):
        what = (
            f"see why with `{typed('status', state)}`" if report.online else "mend or replace its directory"
        )
        return f"{left}: not every data server could be looked at; {what}"
    if report.count(LOST) == len(report.findings):
        return (
            f"{left}: no data server can fill these; bring their disks back if there are others, "
            "or write these files anew, or remove them"
        )
    if not report.online:
        return f"{left}: start the cluster with `{typed('up', state)}`, and it fills what data servers lack"
    if repaired:
        return f"{left}: look at the servers with: {typed('status', state)}"
    return f"{left}: `{mend}` fills what data servers lack"
