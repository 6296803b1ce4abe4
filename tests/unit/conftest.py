"""A data server's store on disk, of segments so small that a few blocks fill several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataserver.segments import SegmentStore
from tests.unit.segment_support import SMALL


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    return place


@pytest.fixture
def store(directory: Path) -> Iterator[SegmentStore]:
    made = SegmentStore(directory, segment_bytes=SMALL)
    yield made
    made.close()
