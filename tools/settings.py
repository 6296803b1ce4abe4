"""The command `config`: a cluster's effective configuration, or its lost file from what copies hold of it."""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from dataserver.directory import read_identity
from metaserver import copies
from metaserver.directory import DATABASE_NAME
from tools.holders import stopped
from tools.locate import add_state_option, find_cluster
from tools.output import add_json_option, print_json
from tools.progress import watching
from tools.rebuild import choose
from wire.config import ConfigError, DataServerConfig, dumps, parse


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add config."""
    parser = subparsers.add_parser(
        "config", help="print the effective configuration, or a lost cluster.toml again"
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="print the cluster.toml that is kept in a backup, in meta/ or in the directory of a data server "
        "that is stopped",
    )
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration as TOML, or as JSON."""
    if arguments.source is not None:
        text = kept_in(arguments.source)
        parse(tomllib.loads(text), Path())
        heading = ""
    else:
        cluster = find_cluster(arguments.state)
        text, heading = dumps(cluster.config), f"# {cluster.config_file}\n"
    if arguments.json:
        print_json(tomllib.loads(text))
    else:
        print(heading + text, end="")
    return 0


def kept_in(source: Path) -> str:
    """Return the text of cluster.toml from a backup, a metadata directory or a data server's.

    Raises:
        ConfigError: it is none of these, or does not have it. ClusterError: no copy there is whole.
    """
    if not source.is_dir():
        return copies.configuration(source)
    if (source / DATABASE_NAME).exists():
        return copies.configuration(source / DATABASE_NAME)
    said = read_identity(source)
    place = DataServerConfig(int(str(said["number"])), "", source)
    with tempfile.TemporaryDirectory() as room, watching("looking for copies of the metadata:") as watch:
        copy = Path(room) / "copy"
        try:
            choose(str(said["cluster"]), [stopped(place, str(said["cluster"]))], 1, copy, watch)
        except OSError as error:
            raise ConfigError(f"{copy}: cannot be written: {error.strerror}") from None
        return copies.configuration(copy)
