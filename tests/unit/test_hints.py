"""What people are told to do, by how many machines the servers are on."""

from __future__ import annotations

from pathlib import Path

import pytest

from wire.config import ClusterConfig, DataServerConfig
from wire.hints import how_to_change_quorum, how_to_start
from wire.quorum import Quorum


@pytest.mark.parametrize(
    ("machine", "start", "change"),
    [
        ("127.0.0.1", "`quorumfs up`", "`quorumfs down`, change that, `quorumfs up`"),
        ("10.77.0.1", "`quorumfs serve --help`", "on the machine of each mediator"),
    ],
)
def test_up_and_down_are_for_one_machine_only(machine: str, start: str, change: str) -> None:
    servers = (DataServerConfig(1, "127.0.0.1:7001", Path("data-1")),)
    addresses = ("127.0.0.1:7002", f"{machine}:7003")
    config = ClusterConfig("test", Quorum(1, 1, 1), *addresses, Path("meta"), servers)
    assert start in how_to_start(config)
    assert change in how_to_change_quorum(config)
