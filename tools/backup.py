"""The command `backup`: a copy of the metadata database in a file, of a running cluster or a stopped one.

The copy is made by the metadata server and fetched from it piece by piece, so that this works from another
machine too. It gets its name when all of it is on disk and was checked. Exit status: 0 the copy is there,
1 it is not, or may be gone after a power loss, 2 it cannot be made as asked.
"""

from __future__ import annotations

import argparse
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from metaserver import copies, offline, pages
from tools.locate import CALL_SECONDS, add_state_option, find_cluster, typed
from tools.new_name import give_name
from tools.output import add_json_option, bytes_text, nice_path, print_json
from tools.processes import ClusterError
from tools.progress import watching
from tools.whole import Watch, is_running
from wire.blocking import BlockingClient
from wire.config import ClusterConfig, ConfigError
from wire.digest import BLOCK_BYTES
from wire.errors import Busy, QuorumfsError
from wire.methods import BookkeepingMethods

LOOK_SECONDS = 0.05
BUSY_SECONDS = 60.0


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add backup."""
    parser = subparsers.add_parser("backup", help="copy the metadata to a file, running or stopped")
    parser.add_argument("file", metavar="FILE", type=Path, help="the copy; it must not exist")
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="copy the database of a stopped server that cannot be started, though it lacks the last changes",
    )
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make a copy and tell of it."""
    cluster = find_cluster(arguments.state)
    target: Path = arguments.file.absolute()
    if target.exists():
        raise ConfigError(f"{arguments.file} exists already; name a new file")
    # A name that is nobody's: not of a file of the user's, nor of another backup at work.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with watching("backup:") as watch:
            if is_running(cluster.config, arguments.state):
                fetch_running(cluster.config, partial, watch)
            else:
                with cluster.lock():
                    _copy_stopped(cluster.config, partial, watch, arguments.incomplete, arguments.state)
            found = copies.inspect(partial, cluster.config.cluster, watch)
        give_name(partial, target)  # of two backups that come here at once, one has the name
    except FileExistsError:
        raise ClusterError(
            f"{arguments.file} was made meanwhile by another command; name a new file"
        ) from None
    except OSError as error:
        raise ClusterError(f"{arguments.file}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    try:
        copies.sync_name(target)
    except OSError as error:
        raise ClusterError(
            f"{arguments.file} is there and whole, but a power loss may take it away, as its directory "
            f"cannot be synced ({error.strerror}); run sync, or make a copy on another disk"
        ) from None
    if arguments.json:
        print_json(as_data(target, found))
    else:
        print(f"{nice_path(target)}: {in_words(found)}")
        tell_findings(found, arguments.state)
    return 0


def fetch_running(config: ClusterConfig, target: Path, watch: Watch) -> None:
    """Have the metadata server make a copy, and fetch it.

    Raises:
        QuorumfsError, OSError.
        ClusterError: the server could not make it.
    """
    address = config.metaserver_listen
    with closing(
        BlockingClient([address], config.rpc, connect_seconds=config.deadlines.connect_seconds)
    ) as meta:
        number = _begin(meta)
        try:
            said = _await_copy(meta, number, watch)

            def read(offset: int) -> bytes:
                return meta.call(CALL_SECONDS, BookkeepingMethods.read_copy, number, offset, BLOCK_BYTES)

            with target.open("wb") as file:
                _fetch(read, file.write, said["bytes"], watch)
            copies.sync_file(target)
        finally:
            with suppress(QuorumfsError):
                meta.call(CALL_SECONDS, BookkeepingMethods.drop_copy, number)


def _begin(meta: BlockingClient) -> int:
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return meta.call(CALL_SECONDS, BookkeepingMethods.begin_copy)
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(LOOK_SECONDS)


def _await_copy(meta: BlockingClient, number: int, watch: Watch) -> dict[str, Any]:
    while (said := meta.call(CALL_SECONDS, BookkeepingMethods.copy_progress, number))["state"] == "running":
        watch("copying", said["done"], said["total"])
        time.sleep(LOOK_SECONDS)
    if said["state"] != "done":
        raise ClusterError(f"the metadata server could not copy its database: {said['error']}")
    return said


def _fetch(read: Callable[[int], bytes], write: Callable[[bytes], object], size: int, watch: Watch) -> None:
    done = 0
    while done < size:
        piece = read(done)
        if not piece:
            raise ClusterError("the copy ended early; try again")
        write(piece)
        done += len(piece)
        watch("fetching", done, size)


def _copy_stopped(
    config: ClusterConfig, target: Path, watch: Watch, may_lack: bool, state: Path | None
) -> None:
    with offline.opened(config.metaserver_directory, config.cluster) as connection:
        left = offline.left_changes(connection, config.metaserver_directory)
        if left and not may_lack:
            raise ClusterError(
                f"the stopped metadata server's database lacks the last {left} changes of names, which a "
                f"mount has answered: `{typed('up', state)}` takes them in, then try again; or --incomplete, "
                "which copies it as it is"
            )
        try:
            copies.write(connection, target, time.time_ns(), watch)
        except sqlite3.OperationalError as error:
            if pages.is_damage(error):
                raise  # of the database, which `opened` tells of
            raise ClusterError(f"{target}: cannot be written: {error}") from None


def as_data(file: Path, found: copies.Copy) -> dict[str, Any]:
    """Return what is known of a copy as plain data."""
    return {
        "file": file,
        "copied_ns": found.copied_ns,
        "bytes": found.size,
        "blocks": found.blocks,
        "inodes": found.inodes,
        "findings": [{"check": finding.check, "row": finding.row} for finding in found.findings],
    }


def in_words(found: copies.Copy) -> str:
    """Return what is known of a copy in words."""
    return (
        f"{bytes_text(found.size)}, the metadata as of {when(found.copied_ns)}: "
        f"{found.inodes} inodes, {found.blocks} blocks; it holds no bytes of files"
    )


def when(time_ns: int) -> str:
    """Return a time as people read it."""
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().isoformat(" ", "seconds")


def tell_findings(found: copies.Copy, state: Path | None) -> None:
    """Say that the metadata was copied as it is, with what is wrong in it."""
    if found.findings:
        fsck = typed("fsck", state)
        print(f"{len(found.findings)} findings of the database are in it too; see them with: {fsck}")
