"""What a mount does with directories that another mount has moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.mount.conftest import two_mounts

NUMBERS = count()


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one cluster."""
    base = tmp_path_factory.mktemp("moved")
    with two_mounts(base) as places:
        yield places


@pytest.mark.parametrize("target", ["there", "there/deeper"])
def test_a_directory_that_another_mount_has_moved_is_renamed(mounts: tuple[Path, Path], target: str) -> None:
    """It said ESTALE until its new name was looked at."""
    number = next(NUMBERS)
    here, elsewhere = (place / f"{number}" for place in mounts)
    for name in ("before", "after", "there", "there/deeper"):
        (here / name).mkdir(parents=True)
    (here / "before" / "moved" / "deeper").mkdir(parents=True)
    (elsewhere / "before" / "moved" / "deeper").stat()
    (here / "before" / "moved").rename(here / "after" / "moved")
    (elsewhere / "after" / "moved").rename(elsewhere / target / "again")
    assert os.listdir(here / target / "again") == ["deeper"]  # noqa: PTH208
