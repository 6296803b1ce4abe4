"""A mount of five servers for each module's tests, and an empty directory on it for each test.

`long` marks what takes minutes or needs programs that only `make programs` installs; `make test` runs
the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unexpected_lines
from tests.programs.mounted import five_servers


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[Path]:
    """The mount point of a cluster that lives as long as the module's tests."""
    with five_servers() as (cluster, mountpoint):
        yield mountpoint
        unexpected = unexpected_lines(cluster)
    assert not unexpected, "unexpected lines in the logs:\n" + "\n".join(unexpected)


@pytest.fixture
def here(shared_mount: Path, request: pytest.FixtureRequest) -> Path:
    """An empty directory on the mount."""
    place = shared_mount / request.node.name.replace("/", "_")
    place.mkdir()
    return place
