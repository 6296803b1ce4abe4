"""New files all of whose writes failed are removed: not what is written to one that is opened meanwhile."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fusefs.filesystem import FileSystem
from tests.support import wait_until
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, read, write
from wire.errors import NotFound, StaleFile, Unavailable, WriteFailed


def fail_to_make(fs: FileSystem, server: FakeServer) -> int:
    """Make a file whose only write fails, and close it; return its number."""
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"1234")
    server.fail("write_file", WriteFailed("two servers are gone"))
    with pytest.raises(WriteFailed):
        close(fs, handle)
    return attributes.ino


def is_there(fs: FileSystem) -> bool:
    try:
        return bool(fs.names.lookup(1, b"a"))
    except NotFound:
        return False


def test_who_opens_it_while_it_is_removed_finds_none(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes it anew. What he writes must not go to a file without a name."""
    openings: list[Future[Any]] = []
    waits: list[bool] = []
    monkeypatch.setattr(fs._opens, "_look", lambda: waits.append(True))
    with ThreadPoolExecutor(1) as threads:

        def open_again() -> None:
            openings.append(threads.submit(fs.files.open, 2, os.O_WRONLY))
            wait_until(lambda: waits or openings[0].done(), 5, "it waits, or is open")

        server.hooks["take_back"] = open_again
        assert fail_to_make(fs, server) == 2
        with pytest.raises(StaleFile):
            openings[0].result(5)
    assert not is_there(fs)


def test_the_server_knows_of_its_close_before(fs: FileSystem, server: FakeServer) -> None:
    """Else who opens it a moment later would be given the file without a name."""
    server.hooks["take_back"] = lambda: told.append(set(server.open_inodes))
    told: list[set[int]] = []
    ino = fail_to_make(fs, server)
    assert [ino in each for each in told] == [False]
    with pytest.raises(StaleFile):
        fs.files.open(ino, os.O_WRONLY)


def test_it_stays_if_the_server_cannot_be_told_of_its_close(fs: FileSystem, server: FakeServer) -> None:
    server.fail("close", Unavailable("restarted"))
    ino = fail_to_make(fs, server)
    assert server.calls["take_back"] == 0
    assert read(fs, ino) == b""
