"""The removal of contents that comes a moment after the names: not any more when the server stops."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import metaserver.__main__
from metaserver import reaper
from metaserver.reaper import Reaper
from wire.config import ClusterConfig, DataServerConfig
from wire.errors import InternalError, NoSpace, QuorumfsError
from wire.quorum import Quorum


class Rig:
    """A reaper of a store that notes what is changed, and of contents that were condemned."""

    def __init__(self) -> None:
        self.removed: list[int] = []
        self.contents: Any = SimpleNamespace(condemned=[1, 2], remove_condemned=None)
        store: Any = SimpleNamespace(change=self._change)
        sessions: Any = None
        self.reaper = Reaper(store, sessions, self.contents)

    def _change(self, _work: object, inodes: list[int]) -> list[int]:
        self.removed += inodes
        return []


@pytest.mark.parametrize("closed", [False, True])
def test_what_was_condemned_is_removed_soon_unless_the_server_stops(
    monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    monkeypatch.setattr(reaper, "SOON_SECONDS", 0.01)
    rig = Rig()

    async def play() -> None:
        rig.reaper.remove_soon()
        if closed:
            rig.reaper.close()
        later = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.02, later.set_result, None)  # after the other timer
        await later

    asyncio.run(play())
    assert rig.removed == ([] if closed else [1, 2])


def test_a_failure_of_any_kind_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without this job no session ever ends, and locks of the dead stay."""
    rig = Rig()
    turns: list[str] = []

    async def run_once() -> None:
        turns.append("tried")
        if len(turns) == 3:
            raise asyncio.CancelledError
        raise TypeError("a defect")

    monkeypatch.setattr(rig.reaper, "run_once", run_once)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(rig.reaper.run_forever(0.001))
    assert len(turns) == 3
    assert "a defect" in caplog.text


@pytest.mark.parametrize("error", [InternalError("the disk failed"), NoSpace("the disk is full")])
def test_a_server_ends_in_good_order_though_its_disk_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: QuorumfsError
) -> None:
    """Simulated seed 549051: it ended with a traceback, as it could not remove what nobody has any more."""

    async def serve(server: object, address: str, stop: asyncio.Event, ended: asyncio.Event) -> None:
        stop.set()

    async def fail(_: Reaper) -> None:
        raise error

    monkeypatch.setattr(metaserver.__main__, "serve", serve)
    monkeypatch.setattr(Reaper, "remove_orphans", fail)
    servers = (DataServerConfig(1, "127.0.0.1:0", tmp_path / "data-1"),)
    addresses = ("127.0.0.1:0", "127.0.0.1:0")
    config = ClusterConfig("test", Quorum(1, 1, 1), *addresses, tmp_path / "meta", servers)
    asyncio.run(metaserver.__main__.serve_metadata(config, tmp_path))
    assert f"orphans are left to the next start: {error}" in caplog.text
