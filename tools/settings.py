"""The command `config`: the effective configuration of a cluster, with every default filled in."""

from __future__ import annotations

import argparse
import tomllib
from typing import Any

from tools.locate import add_state_option, find_cluster
from tools.output import add_json_option, print_json
from wire.config import dumps


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add config."""
    parser = subparsers.add_parser("config", help="print the effective configuration")
    add_state_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration as TOML, or as JSON."""
    cluster = find_cluster(arguments.state)
    text = dumps(cluster.config)
    if arguments.json:
        print_json(tomllib.loads(text))
    else:
        print(f"# {cluster.config_file}\n{text}", end="")
    return 0
