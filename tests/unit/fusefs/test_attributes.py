"""What an inode is like, as the programs of its mount are told, with what is not committed yet."""

from __future__ import annotations

import os
import stat
import threading
from typing import Any

import pytest

from fusefs.cache import LIFE_SECONDS
from fusefs.clock import seconds_passed
from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make, write
from wire.messages import AttributeChanges, Attributes


def test_a_time_that_is_set_during_a_commit_stays(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"content")
    write_file, is_set = server.write_file, threading.Event()

    def set_time() -> None:
        fs.attributes.set(attributes.ino, AttributeChanges(mtime_ns=5))
        is_set.set()

    setter = threading.Thread(target=set_time)

    def write_after_it(*args: Any) -> Attributes:
        setter.start()
        is_set.wait(0.1)  # it is not, while the commit is under way
        return write_file(*args)

    monkeypatch.setattr(server, "write_file", write_after_it)
    fs.files.flush(handle)
    setter.join()
    fs.files.release(handle)
    assert server.getattr(attributes.ino).mtime_ns == 5
    assert fs.attributes.get(attributes.ino).mtime_ns == 5


def test_times_set_while_writing_stand_after_close(fs: FileSystem, server: FakeServer) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"1234")
    fs.attributes.set(attributes.ino, AttributeChanges(mtime_ns=1_000_000_007))
    close(fs, handle)
    assert fs.attributes.get(attributes.ino).mtime_ns == 1_000_000_007


def test_a_mode_set_elsewhere_while_writing_stands_after_close(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    fs.attributes.set(ino, AttributeChanges(mode=stat.S_IFREG | 0o4755))
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"new")
    server.setattr(ino, AttributeChanges(mode=stat.S_IFREG | 0o700))
    close(fs, handle)
    assert server.committed(ino) == b"new"
    assert server.getattr(ino).mode == stat.S_IFREG | 0o700


def test_dropped_caches_have_the_server_asked_again(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    fs.names.lookup(1, b"a")
    asked = server.calls["resolve"]
    fs.names.lookup(1, b"a")
    assert server.calls["resolve"] == asked
    fs.xattrs.set(ino, b"user.quorumfs.drop_caches", b"", 0)
    fs.names.lookup(1, b"a")
    assert server.calls["resolve"] == asked + 1


def test_the_cache_answers_for_a_while_and_own_changes_at_once(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"a", b"1")
    server.calls.clear()
    for _ in range(5):
        assert fs.attributes.get(fs.names.lookup(1, b"a").ino).size == 1
    assert not server.calls
    fs.rename(1, b"a", 1, b"b")
    assert fs.names.lookup(1, b"b").size == 1
    fs.attributes.set(fs.names.lookup(1, b"b").ino, AttributeChanges(mode=0o100600))
    assert fs.names.lookup(1, b"b").mode == 0o100600


def test_a_modification_time_in_the_future_is_not_when_it_was_changed(
    fs: FileSystem, server: FakeServer
) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    write(fs, handle, 0, b"1234")
    before = fs.attributes.get(attributes.ino)
    fs.attributes.set(attributes.ino, AttributeChanges(mtime_ns=2**62))
    found = fs.attributes.get(attributes.ino)
    assert found.mtime_ns == 2**62
    assert before.ctime_ns <= found.ctime_ns < 2**62
    close(fs, handle)
    assert server.getattr(attributes.ino).mtime_ns == 2**62


def test_what_others_set_is_told_of_a_file_with_changes_that_wait(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"newer")
    assert fs.attributes.get(ino).size == 5
    server.setattr(ino, AttributeChanges(mode=stat.S_IFREG | 0o600))
    monkeypatch.setattr(fs._cache, "_clock", lambda: seconds_passed() + LIFE_SECONDS)
    found = fs.attributes.get(ino)
    assert (found.mode, found.size) == (stat.S_IFREG | 0o600, 5)
    close(fs, handle)


def test_a_file_with_changes_that_wait_has_no_name_once_it_is_removed(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"newer")
    server.hooks["unlink"] = lambda: server.set_link_count(ino, 0)
    fs.unlink(1, b"a")
    assert (fs.attributes.get(ino).nlink, fs.attributes.get(ino).size) == (0, 5)
    close(fs, handle)
