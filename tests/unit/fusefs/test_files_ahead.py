"""Small files whose bytes come with their open, or before it; over an in-memory server."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from fusefs import ahead
from fusefs.clock import seconds_passed
from fusefs.filesystem import FileSystem
from tests.support import wait_until
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make, read, write
from wire.errors import DeadlineExceeded
from wire.messages import BlockPart, Opened


def test_the_bytes_of_a_small_file_come_with_open_where_reads_follow(
    fs: FileSystem, server: FakeServer
) -> None:
    inos = [make(fs, name, name * 9) for name in (b"a", b"b", b"c")]
    assert [read(fs, ino) for ino in inos] == [b"a" * 9, b"b" * 9, b"c" * 9]
    assert server.calls["read_block"] == 1  # the first open did not know yet
    assert server.calls["open_and_read"] == 2
    for ino in inos[:2]:
        close(fs, fs.files.open(ino, os.O_RDONLY)[0])
    assert server.calls["open_and_read"] == 3  # the kernel had the pages: they are not sent in vain again


def test_bytes_that_came_with_open_and_do_not_match_the_witness_are_not_used(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(fs, b"a", b"right")
    read(fs, ino)
    fs.xattrs.set(ino, b"user.quorumfs.drop_caches", b"", 0)
    honest = server.open_and_read

    def lie(*args: Any) -> Opened:
        return honest(*args)._replace(part=BlockPart(5, b"", b"wrong"))

    monkeypatch.setattr(server, "open_and_read", lie)
    assert read(fs, ino) == b"right"
    assert server.calls["open_and_read"] == 1
    assert server.calls["read_block"] == 2


def make_neighbours(fs: FileSystem, count: int) -> list[int]:
    inos = [make(fs, b"%04d" % number, b"%04d" % number * 9) for number in range(count)]
    fs.xattrs.set(1, b"user.quorumfs.drop_caches", b"", 0)
    fs.directories.read(fs.directories.open(1), restart=False)
    return inos


def test_neighbours_are_fetched_ahead_by_few_calls(fs: FileSystem, server: FakeServer) -> None:
    inos = make_neighbours(fs, 200)
    server.calls.clear()
    assert [read(fs, ino) for ino in inos] == [b"%04d" % number * 9 for number in range(200)]
    assert server.calls["read_block"] + server.calls["open_and_read"] <= 4
    assert server.calls["read_small_files"] <= 6
    assert server.calls["open"] == 200, "each open is told to the server and tells what the file is now"


def test_a_file_that_changed_since_it_was_fetched_ahead_is_read_anew(
    fs: FileSystem, server: FakeServer
) -> None:
    inos = make_neighbours(fs, 20)
    for ino in inos[:4]:
        read(fs, ino)
    wait_until(lambda: inos[8] in fs._ahead._ready, 5, "the neighbours came")
    server.replace(inos[8], b"changed elsewhere")
    assert [read(fs, ino) for ino in inos[4:9]] == [
        *(b"%04d" % number * 9 for number in range(4, 8)),
        b"changed elsewhere",
    ]


def test_what_is_on_its_way_when_everything_is_forgotten_is_not_used(
    fs: FileSystem, server: FakeServer
) -> None:
    inos = make_neighbours(fs, 20)
    asked, go = threading.Event(), threading.Event()
    server.hooks["read_small_files"] = lambda: (asked.set(), go.wait(5))  # type: ignore[func-returns-value]
    for ino in inos[:3]:
        read(fs, ino)
    assert asked.wait(5)
    fs.xattrs.set(1, b"user.quorumfs.drop_caches", b"", 0)
    go.set()
    fs._ahead.close()
    assert not fs._ahead._ready


def test_a_mount_that_is_alone_opens_what_was_fetched_ahead_without_a_call(
    fs: FileSystem, server: FakeServer
) -> None:
    fs._grant.extend(seconds_passed(), 60.0)
    inos = make_neighbours(fs, 100)
    fs.directories.read(fs.directories.open(1), restart=False)
    server.calls.clear()
    assert [read(fs, ino) for ino in inos] == [b"%04d" % number * 9 for number in range(100)]
    assert server.calls["open"] <= 8
    assert server.calls["tell_open"] == 0
    for ino in inos[:3]:
        read(fs, ino)
    wait_until(lambda: inos[6] in fs._ahead._ready, 5, "the neighbours came")
    handle, _ = fs.files.open(inos[4], os.O_RDONLY)
    server.open_inodes.clear()
    fs.unlink(1, b"0004")
    assert server.open_inodes == {inos[4]}, "the server was told before the name was removed"
    assert fs.files.read(handle, 0, 100) == b"0004" * 9
    close(fs, handle)


@pytest.mark.parametrize("change", ["written", "removed", "alone no more"])
def test_what_may_have_changed_since_it_was_fetched_ahead_is_opened_by_a_call(
    fs: FileSystem, server: FakeServer, change: str
) -> None:
    fs._grant.extend(seconds_passed(), 60.0)
    inos = make_neighbours(fs, 20)
    for ino in inos[:4]:
        read(fs, ino)
    wait_until(lambda: inos[5] in fs._ahead._ready, 5, "the neighbours came")
    if change == "written":
        handle, _ = fs.files.open(inos[5], os.O_WRONLY | os.O_TRUNC)
        write(fs, handle, 0, b"newer")
        close(fs, handle)
    elif change == "removed":
        fs.unlink(1, b"0005")
    else:
        server.replace(inos[5], b"theirs")
        fs._grant.end()
    opens = server.calls["open"]
    expected = {"written": b"newer", "removed": b"0005" * 9, "alone no more": b"theirs"}
    assert read(fs, inos[5]) == expected[change]
    assert server.calls["open"] == opens + 1


def test_a_failure_to_fetch_ahead_fails_no_open(fs: FileSystem, server: FakeServer) -> None:
    inos = make_neighbours(fs, 20)
    server.fail("read_small_files", DeadlineExceeded("no answer"))
    assert [read(fs, ino) for ino in inos] == [b"%04d" % number * 9 for number in range(20)]


def test_what_nobody_opens_is_dropped(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "KEPT_SECONDS", 0.05)
    inos = make_neighbours(fs, 20)
    for ino in inos[:3]:
        read(fs, ino)
    wait_until(lambda: server.calls["read_small_files"] == 1, 5, "neighbours were asked for")
    wait_until(lambda: not fs._ahead._coming, 5, "they came")
    wait_until(lambda: fs._ahead.drop_old() is None and not fs._ahead._ready, 5, "they are dropped")
    assert fs._ahead._ready_bytes == 0
