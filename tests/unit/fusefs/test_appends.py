"""Appends of several mounts to one file, over an in-memory server."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from tests.support import take_seed
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make, read, write
from wire.errors import SessionUnknown


def open_log(fs: FileSystem) -> tuple[int, Handle]:
    ino = make(fs, b"a", b"old.")
    return ino, fs.files.open(ino, os.O_WRONLY | os.O_APPEND)[0]


def test_appends_go_to_the_end_that_another_mount_made(server: FakeServer, fs: FileSystem) -> None:
    ino, handle = open_log(fs)
    write(fs, handle, 4, b"one.")
    server.replace(ino, b"old.other.")
    write(fs, handle, 8, b"two.")
    fs.files.flush(handle)
    assert server.committed(ino) == b"old.other.one.two."
    write(fs, handle, 0, b"three.")
    server.replace(ino, b"")
    close(fs, handle)
    assert server.committed(ino) == b"three."
    assert server.calls["write_file"] == 3


def test_random_appends_and_other_mounts(server: FakeServer, fs: FileSystem) -> None:
    seed = take_seed()
    dice = random.Random(seed)
    ino = make(fs, b"a", b"")
    handle, _ = fs.files.open(ino, os.O_RDWR | os.O_APPEND)
    expected: list[bytes] = []
    waiting: list[bytes] = []
    for turn in range(300):
        record = b"%d." % turn * dice.randrange(1, 30)
        match dice.randrange(5):
            case 0:
                server.replace(ino, server.committed(ino) + record)
                expected.append(record)
            case 1:
                fs.files.flush(handle)
                expected, waiting = expected + waiting, []
            case 2:
                assert read(fs, ino) == b"".join(expected + waiting), f"seed {seed}, turn {turn}"
            case _:
                write(fs, handle, 0, record)
                waiting.append(record)
    close(fs, handle)
    assert server.committed(ino) == b"".join(expected + waiting), f"seed {seed}"


@pytest.mark.parametrize("when", ["write_file", "answer write_file"])
def test_an_append_whose_session_died_is_carried_out_once(
    server: FakeServer, fs: FileSystem, when: str
) -> None:
    ino, handle = open_log(fs)
    write(fs, handle, 4, b"new.")
    server.fail(when, SessionUnknown())
    close(fs, handle)
    assert server.committed(ino) == b"old.new."


def test_an_append_that_is_made_durable_is_one_call(server: FakeServer, fs: FileSystem) -> None:
    _, handle = open_log(fs)
    fs.files.fsync(handle)
    before = server.calls.copy()
    for turn in range(5):
        write(fs, handle, 4 + turn, b"x")
        fs.files.fsync(handle)
    assert server.calls - before == Counter(write_file=5)
    close(fs, handle)
