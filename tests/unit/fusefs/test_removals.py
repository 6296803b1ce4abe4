"""Which names are removed without a call, over an in-memory server."""

from __future__ import annotations

import os
import stat
from collections import Counter

import pytest

from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer
from wire.errors import NotFound, Unavailable

FILE = stat.S_IFREG | 0o644


@pytest.fixture
def server() -> FakeServer:
    made = FakeServer()
    made.alone = True
    return made


def make(fs: FileSystem, *names: bytes, mode: int = FILE) -> None:
    fs.attributes.get(1)
    for name in names:
        fs.make(1, name, mode, 0, 0)


def removal_calls(server: FakeServer) -> Counter[str]:
    return Counter({name: server.calls[name] for name in ("unlink", "rmdir", "remove_known")})


def test_what_is_certain_takes_no_call(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"a", b"b", b"c")
    for name in (b"a", b"b", b"c"):
        fs.unlink(1, name)
    assert removal_calls(server) == Counter(remove_known=3)
    for name in (b"a", b"b", b"c"):
        with pytest.raises(NotFound):
            fs.names.lookup(1, name)
        assert not server.resolve(1, [name])


def test_its_directory_is_known_to_have_changed(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"a", b"b")
    fs.unlink(1, b"a")
    before = fs.attributes.get(1)
    fs.unlink(1, b"b")
    server.calls.clear()
    after = fs.attributes.get(1)
    assert after.mtime_ns == after.ctime_ns > before.mtime_ns
    assert after == server.getattr(1)


def test_what_is_refused_takes_a_call(fs: FileSystem, server: FakeServer) -> None:
    server.takes_removals = False
    make(fs, b"a", b"b")
    fs.unlink(1, b"a")
    fs.unlink(1, b"b")
    assert removal_calls(server) == Counter(unlink=2, remove_known=2)
    assert not server.resolve(1, [b"b"])


def test_a_directory_takes_a_call(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"d", mode=stat.S_IFDIR | 0o755)
    fs.rmdir(1, b"d")
    assert server.calls["unlink"] == 1, "which is that of rmdir"
    assert not server.calls["remove_known"]


@pytest.mark.parametrize("forget", ["name", "directory", "alone"])
def test_what_is_not_certain_takes_a_call(fs: FileSystem, server: FakeServer, forget: str) -> None:
    make(fs, b"b", b"c")
    if forget == "name":
        fs._cache.changed(names=((1, b"b"),))
        fs.attributes.get(1)
    elif forget == "directory":
        fs._cache.changed(inodes=(1,))
    else:
        fs._grant.end()
    fs.unlink(1, b"b")
    assert server.calls["remove_known"] == 0
    assert not server.resolve(1, [b"b"])


def test_a_file_that_no_server_knows_yet_is_made_first(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"a")
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"b")
    handle = fs.create(1, b"b", 0o644, 0, 0, os.O_WRONLY)[1]
    fs.unlink(1, b"a")
    fs.unlink(1, b"b")
    assert not server.resolve(1, [b"b"])
    fs.files.flush(handle, 0)
    fs.files.release(handle)


def test_of_an_unknown_outcome_nothing_is_known(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"a", b"b")
    fs.unlink(1, b"a")
    server.fail("remove_known", Unavailable("nobody there"))
    with pytest.raises(Unavailable):
        fs.unlink(1, b"b")
    server.calls.clear()
    fs.names.lookup(1, b"b")
    assert server.calls["resolve"], "the server is asked again"
