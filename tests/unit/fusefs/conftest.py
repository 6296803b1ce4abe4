"""A file system over an in-memory server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer, file_system


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def fs(server: FakeServer) -> Iterator[FileSystem]:
    made = file_system(server)
    yield made
    made.end()
    assert not any(server.failures.values()), "what a test has fail is asked for"
