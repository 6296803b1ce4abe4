"""What who mounts is told while the cluster cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs import connect
from wire.config import ClusterConfig, ConfigError, DataServerConfig
from wire.quorum import Quorum


@pytest.mark.parametrize(
    ("metaserver", "hint"),
    [
        ("127.0.0.1:1", "start the cluster with: `quorumfs up`"),
        ("10.77.0.1:7003", "start these servers, each on its own machine: see `quorumfs serve --help`"),
    ],
)
def test_where_to_start_what_is_lacking(
    metaserver: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "BEGIN_SECONDS", 0.1)
    servers = (DataServerConfig(1, "127.0.0.1:3", tmp_path / "data"),)
    mediator = f"unix:{tmp_path / 'none'}"
    config = ClusterConfig("test", Quorum(1, 1, 1), mediator, metaserver, tmp_path / "meta", servers)
    with pytest.raises(ConfigError) as refused, connect.connect(config, "test"):
        pass
    assert str(refused.value).endswith(hint)
