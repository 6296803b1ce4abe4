"""The command `fault`: damage and failures on demand, in a local cluster.

Corruption goes through the lab methods of the data servers; processes are ended, paused and started
through the operating system, so that it works in whatever state they are. It must not touch a server's
files.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.cluster import LocalCluster
from tools.lifecycle import refuse_lost_metadata
from tools.locate import (
    add_state_option,
    extents_of,
    find_cluster,
    find_inode,
    mediator_client,
    typed,
)
from tools.output import add_json_option, print_json
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.config import ConfigError
from wire.errors import QuorumfsError
from wire.methods.data import LabMethods

KINDS = ("flip", "torn", "zeros", "swap", "lie")
DIFFERENT_KINDS = ("flip", "torn", "zeros", "swap")
"""With --different the servers get these in turn."""
CORRUPT_SECONDS = 10.0
DROP_CACHES = "user.quorumfs.drop_caches"
"""Setting this extended attribute of any file on a mount has the mount drop its caches."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add fault and what can be done with it."""
    fault = subparsers.add_parser("fault", help="corrupt replicas; end, pause and restart processes")
    actions = fault.add_subparsers(title="faults", metavar="FAULT", required=True)
    corrupt = actions.add_parser("corrupt", help="damage a file's replicas on some data servers")
    corrupt.add_argument("path", type=Path, help="a file on the mount, or its path from the mount point on")
    corrupt.add_argument("--servers", required=True, metavar="1,2", help="numbers of the data servers")
    corrupt.add_argument("--kind", choices=KINDS, default="flip", help="what is done (default: flip one bit)")
    corrupt.add_argument("--different", action="store_true", help="another kind of damage on each server")
    _finish(corrupt, run_corrupt)
    for action, run, text in (
        ("terminate", run_terminate, "end a process at once, as a crash would (SIGKILL)"),
        ("restart", run_restart, "start a server again, after stopping it if it is up"),
        ("pause", run_pause, "stop a process with SIGSTOP: it keeps its connections and answers nothing"),
        ("resume", run_resume, "let a paused process go on"),
    ):
        parser = actions.add_parser(action, help=text)
        parser.add_argument("server", nargs="+", help="a data server's number, mediator or metaserver")
        if action == "restart":
            parser.add_argument("--blank", action="store_true", help="on an emptied directory")
        _finish(parser, run)


def _finish(parser: argparse.ArgumentParser, run: Any) -> None:
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def server_name(cluster: LocalCluster, word: str) -> str:
    """Return the name of the server that people call by its number or its kind. Raises ConfigError."""
    name = {"meta": "metaserver"}.get(word, f"data-{word}" if word.isdigit() else word)
    if name not in cluster.server_names and name not in cluster.mount_names():
        count = cluster.config.quorum.servers
        raise ConfigError(
            f"there is no server {word}; choose a number from 1 to {count}, mediator or metaserver"
        )
    return name


def server_numbers(cluster: LocalCluster, text: str) -> list[int]:
    """Return the numbers in a list as "1,2" or "2-4". Raises ConfigError."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        bounds = [first, last] if dash else [first]
        if not all(word.isdecimal() for word in bounds) or int(bounds[0]) > int(bounds[-1]):
            raise ConfigError(f"--servers {text}: write numbers of data servers as 1,2 or 2-4")
        for word in bounds:
            server_name(cluster, str(int(word)))
        numbers += range(int(bounds[0]), int(bounds[-1]) + 1)
    return list(dict.fromkeys(numbers))


def run_corrupt(arguments: argparse.Namespace) -> int:
    """Damage every block of a file on the chosen data servers; exit status 1 if it could not be on one."""
    cluster = find_cluster(arguments.state, arguments.path)
    numbers = server_numbers(cluster, arguments.servers)
    client = mediator_client(cluster)
    try:
        ino = find_inode(cluster, client, arguments.path, arguments.state)
        blocks = list(dict.fromkeys(extent.block for extent in extents_of(client, ino)))
    finally:
        client.close()
    if not blocks:
        raise ConfigError(
            f"{arguments.path} has no blocks to corrupt: it is empty; write something into it first"
        )
    done: list[dict[str, Any]] = []
    failed: dict[int, str] = {}
    for index, number in enumerate(numbers):
        kind = DIFFERENT_KINDS[index % len(DIFFERENT_KINDS)] if arguments.different else arguments.kind
        try:
            for block, text in corrupt_blocks(cluster, number, blocks, kind):
                done.append({"server": number, "block": block.hex(), "kind": kind, "done": text})
        except QuorumfsError as error:
            failed[number] = error.message
    drop_caches(cluster)
    for number, why in failed.items():
        print(f"quorumfs: data-{number} went undamaged, or not wholly damaged: {why}", file=sys.stderr)
    if arguments.json:
        print_json(done)
    elif done:
        print("\n".join(f"data server {item['server']}: {item['done']}" for item in done))
    return int(bool(failed))


def corrupt_blocks(
    cluster: LocalCluster, number: int, blocks: list[bytes], kind: str
) -> Iterator[tuple[bytes, str]]:
    """Damage blocks on one data server; yield each with what was done to it, in words.

    Raises:
        QuorumfsError: the server does not answer. It is damaged as far as it was told.
    """
    client = BlockingClient([cluster.address(f"data-{number}")], cluster.config.rpc)
    try:
        for block in blocks:
            yield block, client.call_once(CORRUPT_SECONDS, LabMethods.corrupt, block.hex(), kind)
    finally:
        client.close()


def drop_caches(cluster: LocalCluster) -> None:
    """Have the mounts forget the bytes that they know to be right, so that the next read is a vote."""
    for process in cluster.status():
        if process.name.startswith("mount-") and process.state == "running":
            with suppress(OSError):
                os.setxattr(process.address, DROP_CACHES, b"")


def run_terminate(arguments: argparse.Namespace) -> int:
    """Kill servers; what the mounts know of files on them is forgotten, so that a read shows the fault."""
    return _each(arguments, "terminated", terminate)


def terminate(cluster: LocalCluster, name: str) -> None:
    """Kill one server."""
    cluster.kill(name)
    # Without these two servers a mount answers nothing at all, and the call would wait for them.
    mediates = any(cluster.state(each) == "running" for each in cluster.mediator_names)
    if mediates and cluster.state("metaserver") == "running":
        drop_caches(cluster)


def run_restart(arguments: argparse.Namespace) -> int:
    """Restart servers, on an emptied directory with --blank."""
    if mounts := [word for word in arguments.server if word.startswith("mount-")]:
        again = _start_with(find_cluster(arguments.state), mounts[0], arguments.state)
        raise ConfigError(f"{mounts[0]} is no server; mount it again with: {again}")
    verb = "restarted blank" if arguments.blank else "restarted"

    def restart(cluster: LocalCluster, name: str) -> None:
        if name == "metaserver":
            refuse_lost_metadata(cluster.config, arguments.state)
        cluster.restart(name, blank=arguments.blank)

    return _each(arguments, verb, restart)


def run_pause(arguments: argparse.Namespace) -> int:
    """Stop servers with SIGSTOP."""

    def pause(cluster: LocalCluster, name: str) -> None:
        _refuse_down(cluster, name, arguments.state)
        cluster.pause(name)

    return _each(arguments, "paused", pause)


def run_resume(arguments: argparse.Namespace) -> int:
    """Let paused servers go on."""

    def resume(cluster: LocalCluster, name: str) -> None:
        _refuse_down(cluster, name, arguments.state)
        cluster.resume(name)

    return _each(arguments, "resumed", resume)


def _refuse_down(cluster: LocalCluster, name: str, state: Path | None) -> None:
    """Raise ClusterError, with what starts it, for a server or a mount that is down."""
    if cluster.state(name) == "down":
        raise ClusterError(f"{name} is down; start it with: {_start_with(cluster, name, state)}")


def _start_with(cluster: LocalCluster, name: str, state: Path | None) -> str:
    """Return how this user would type the command that starts a server again, or mounts at its place."""
    if not name.startswith("mount-"):
        return typed(f"fault restart {name.removeprefix('data-')}", state)
    record = cluster.process(name).record()
    return typed(f"up {'MOUNTPOINT' if record is None else shlex.quote(record.place)}", state)


def _each(arguments: argparse.Namespace, verb: str, act: Any) -> int:
    cluster = find_cluster(arguments.state)
    names = [server_name(cluster, word) for word in arguments.server]
    with cluster.lock():
        for name in names:
            act(cluster, name)
    if arguments.json:
        print_json([{"server": name, "done": verb, "state": cluster.state(name)} for name in names])
    else:
        print("\n".join(f"{name}: {verb}" for name in names))
    return 0
