"""Directories of a cluster that are made with those above them: a power loss takes none of them away."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import pytest

from dataserver.directory import DataDirectory
from metaserver.directory import Directory
from tests.unit.lost_names import LostNames
from tools.cluster import LocalCluster
from wire.config import ConfigError
from wire.directories import make_directory


def claim_metadata(path: Path) -> None:
    with closing(Directory(path, "test", may_lack_database=True)) as claimed:
        if not claimed.complete:
            claimed.describe()


def claim_data(path: Path) -> None:
    DataDirectory(path, "test", 1).release()


def make_cluster(path: Path) -> None:
    LocalCluster.create(path, servers=1, read_quorum=1, write_quorum=1)


@pytest.mark.parametrize("make", [claim_metadata, claim_data, make_cluster])
def test_the_names_of_all_that_was_made_are_durable(make: Callable[[Path], None], tmp_path: Path) -> None:
    disk = LostNames(tmp_path, lambda disk: None)
    place = tmp_path / "not" / "there" / "yet"
    with disk.watching():
        make(place)
    # What is made in it is for the servers that claim it.
    assert [change.path for change in disk.unsynced if change.path.parent != place] == []


@pytest.mark.parametrize("make", [make_directory, claim_metadata, claim_data])
def test_who_went_no_further_left_none_that_is_not_made_durable_later(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    steps_left = 0

    def fail(disk: LostNames) -> None:
        nonlocal steps_left
        steps_left -= 1
        if not steps_left:
            raise OSError(errno.EIO, "the disk fails here")

    for failing in count(1):
        root = tmp_path / str(failing)
        root.mkdir()
        disk = LostNames(root, fail)
        place = root / "not" / "there" / "yet"
        steps_left = failing
        with suppress(OSError, ConfigError), disk.watching():
            make(place)
        if steps_left > 0:
            break
        with disk.watching():
            make(place)
        lost = [change.path for change in disk.unsynced if change.source is None]
        assert lost == [], f"it ended at step {failing}"
    assert failing > 6
