"""One fixture: a metadata server in memory, checked at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import metaserver.rings
from tests.unit.metaserver.harness import Harness


@pytest.fixture
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """A metadata server with one session. At the end, all that must hold in its database is checked."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(metaserver.rings, "SHARED_MEMORY", memory)
    harness = Harness(tmp_path)
    yield harness
    harness.close()
