"""The command `restore`: put the metadata back from a copy that `backup` made, or what was there before.

The metadata server and the mediator must be stopped. What was there is moved aside; blocks newer than
the copy are kept on the data servers until `restore --release`. Exit status: 0 done, 1 it did not work, 2 it
cannot work as asked; nothing was changed then.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from metaserver import copies, fence, offline
from metaserver.directory import ASIDE_NAME, DATABASE_NAME
from metaserver.log_mark import mark_file
from metaserver.restore import Restored, copy_aside, restore
from metaserver.schema import ADDED_SCHEMA
from tools.backup import as_data, in_words, tell_findings
from tools.locate import add_state_option, find_cluster, typed
from tools.output import add_json_option, nice_path, print_json
from tools.progress import watching
from tools.whole import FIRST_CALL_SECONDS, Watch
from wire.blocking import BlockingClient
from wire.config import ClusterConfig, ConfigError
from wire.errors import QuorumfsError, Unavailable
from wire.methods import CommonMethods


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add restore."""
    parser = subparsers.add_parser("restore", help="put the metadata of a stopped cluster back from a copy")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="the copy, as backup made it; or meta/before-restore-N, what an earlier restore moved aside",
    )
    what.add_argument(
        "--release",
        action="store_true",
        help="let go the blocks that are newer than the copy that was put back before: they are deleted",
    )
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Put a copy back, or let go what the fences of earlier ones keep."""
    cluster = find_cluster(arguments.state)
    config = cluster.config
    with cluster.lock():
        refuse_running(config, arguments.state)
        if arguments.release:
            return _release(config, as_json=arguments.json)
        with watching("checking") as watch, _copy(arguments.file, config, watch) as copy:
            found = copies.inspect(copy, config.cluster, watch)
            done = restore(copy, config.metaserver_directory, config.cluster)
    if arguments.json:
        print_json(as_data(arguments.file, found) | done_as_data(done))
    else:
        print(f"put back: {in_words(found)}")
        tell_findings(found, arguments.state)
        tell_what_next(done, arguments.state)
    return 0


@contextmanager
def _copy(given: Path, config: ClusterConfig, watch: Watch) -> Iterator[Path]:
    """Yield the copy to put back: the file itself, or one of the database that was moved aside there.

    Raises:
        ConfigError: it is the database that is in use, or there is none.
    """
    place = given.parent.resolve()
    # A log beside it, if there is one, has what the file alone lacks.
    is_database = given.name == DATABASE_NAME and (
        mark_file(given).exists()
        or place.name.startswith(ASIDE_NAME)
        or place == config.metaserver_directory.resolve()
    )
    directory = given.parent if is_database else given
    if not directory.is_dir():
        yield given
        return
    if not (directory / DATABASE_NAME).exists():
        raise ConfigError(f"{given} has no {DATABASE_NAME}; name a copy, or a directory before-restore-N")
    if directory.resolve() == config.metaserver_directory.resolve():
        raise ConfigError(f"{given} is the metadata that is in use now; name a copy of it")
    with copy_aside(directory, config.cluster, watch) as copy:
        yield copy


def refuse_running(config: ClusterConfig, state: Path | None) -> None:
    """Raise ConfigError unless the metadata server and all mediators are stopped.

    A mediator that lived through it would rely on what it knows of the database from before.
    """
    for name, address in (
        ("metadata server", config.metaserver_listen),
        *(("mediator", address) for address in config.mediators),
    ):
        with closing(BlockingClient([address], config.rpc)) as client:
            try:
                client.call_once(FIRST_CALL_SECONDS, CommonMethods.identity)
            except Unavailable:
                continue
            except QuorumfsError:
                pass  # it is there, though it does not answer
        raise ConfigError(f"the {name} runs at {address}; stop the cluster first: {typed('down', state)}")


def done_as_data(done: Restored) -> dict[str, Any]:
    """Return what was done as plain data."""
    return {"before": done.aside, "kept_sessions": [done.fence.first_session, *done.fence.living]}


def tell_what_next(done: Restored, state: Path | None) -> None:
    """Say where things are, and what to do."""
    aside = nice_path(done.aside)
    if (done.aside / DATABASE_NAME).exists():
        again = typed(f"restore {shlex.quote(aside)}", state)
        print(f"the database from before is in {aside}; to have it back, on a stopped cluster: {again}")
    elif any(done.aside.iterdir()):
        print(f"what is left of the database from before is in {aside}")
    print(
        f"next: {typed('up', state)}, then {typed('fsck', state)}, which names the files whose blocks no "
        f"server has any more.\nBlocks newer than the copy stay on the data servers until: "
        f"{typed('restore --release', state)}"
    )


def _release(config: ClusterConfig, *, as_json: bool) -> int:
    with offline.opened(config.metaserver_directory, config.cluster) as connection:
        connection.executescript(ADDED_SCHEMA)
        released = fence.release(connection)
    if as_json:
        print_json({"released": released})
    else:
        print(
            "blocks newer than the copy are deleted when the cluster runs"
            if released
            else "nothing is kept: there was no restore, or it was released before"
        )
    return 0
