"""Holes in files: made by fallocate(2), found by lseek(2), over an in-memory server."""

from __future__ import annotations

import os
import random

import pytest

from fusefs import contents, files
from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer, file_system
from tests.unit.fusefs.work import close, make, write
from wire.digest import BLOCK_BYTES
from wire.errors import NoSpace


@pytest.mark.parametrize("mode", ["punch a hole", "zero a range"])
def test_a_range_that_another_mount_has_written_since_the_open_is_zeroed(
    fs: FileSystem, server: FakeServer, mode: str
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    server.replace(ino, b"old and more")
    flag = files.FALLOCATE_PUNCH_HOLE if mode == "punch a hole" else files.FALLOCATE_ZERO_RANGE
    fs.files.allocate(handle, flag | files.FALLOCATE_KEEP_SIZE, 2, 100)
    assert fs.attributes.get(ino).size in (3, 12)
    close(fs, handle)
    assert server.committed(ino) == b"ol" + bytes(10)


@pytest.mark.parametrize("mode", [0, 1])
def test_allocating_what_is_there_changes_times_alone(fs: FileSystem, server: FakeServer, mode: int) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    write(fs, handle, 0, b"1234")
    close(fs, handle)
    handle, _ = fs.open(attributes.ino, os.O_RDWR)
    before = fs.attributes.get(attributes.ino)
    fs.files.allocate(handle, mode, 1, 2)
    waiting = fs.attributes.get(attributes.ino)
    assert before.mtime_ns < waiting.mtime_ns == waiting.ctime_ns
    close(fs, handle)
    assert server.getattr(attributes.ino).mtime_ns == waiting.mtime_ns
    assert server.committed(attributes.ino) == b"1234"


def test_holes_seek_and_allocate(fs: FileSystem, server: FakeServer) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    write(fs, handle, 0, b"x" * 1000)
    fs.files.allocate(handle, 3, 100, 200)
    fs.files.allocate(handle, 0, 1500, 500)
    for _ in range(2):
        assert bytes(fs.files.read(handle, 0, 5000)) == b"x" * 100 + bytes(200) + b"x" * 700 + bytes(1000)
        assert fs.files.seek(handle, 0, os.SEEK_HOLE) == 100
        assert fs.files.seek(handle, 150, os.SEEK_DATA) == 300
        assert fs.files.seek(handle, 1000, os.SEEK_DATA) is None
        assert fs.files.seek(handle, 1000, os.SEEK_HOLE) == 1000
        assert fs.files.seek(handle, 2000, os.SEEK_HOLE) is None
        fs.files.flush(handle)
    close(fs, handle)
    assert len(server.committed(attributes.ino)) == 2000


def test_room_is_asked_for_where_there_may_be_none(fs: FileSystem, server: FakeServer) -> None:
    server.free_bytes = 10 * BLOCK_BYTES
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    server.calls.clear()
    fs.files.allocate(handle, 0, 0, BLOCK_BYTES)
    assert "usage" not in server.calls
    fs.files.allocate(handle, 0, BLOCK_BYTES, 10 * BLOCK_BYTES)
    with pytest.raises(NoSpace):
        fs.files.allocate(handle, 0, BLOCK_BYTES, 20 * BLOCK_BYTES + 1)
    with pytest.raises(NoSpace):
        fs.files.allocate(handle, files.FALLOCATE_KEEP_SIZE, 0, 22 * BLOCK_BYTES)
    assert handle.inode.size() == 11 * BLOCK_BYTES
    fs.files.allocate(handle, files.FALLOCATE_PUNCH_HOLE | files.FALLOCATE_KEEP_SIZE, 0, 90 * BLOCK_BYTES)
    close(fs, handle)


@pytest.mark.parametrize("seed", range(4))
def test_seeks_find_what_was_written_and_what_was_not(seed: int) -> None:
    dice = random.Random(seed)
    print(f"seed {seed}")
    fs = file_system(FakeServer())
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    is_data: list[bool] = []
    for _ in range(120):
        start, length = dice.randrange(400), dice.choice([1, 3, 60])
        action = dice.randrange(5)
        if action < 3:
            is_data.extend([False] * (start + length - len(is_data)))
            is_data[start : start + length] = [True] * length
            for step in range(start, start + length):
                write(fs, handle, step * 4096, b"x" * 4096)
        elif action == 3:
            is_data[start : start + length] = [False] * len(is_data[start : start + length])
            fs.files.allocate(handle, 3, start * 4096, length * 4096)
        else:
            fs.files.flush(handle)
        place, end = dice.randrange(450), len(is_data)
        found = next((at for at in range(place, end) if is_data[at]), None)
        assert fs.files.seek(handle, place * 4096, os.SEEK_DATA) == (None if found is None else found * 4096)
        hole = next((at for at in range(place, end) if not is_data[at]), end) if place < end else None
        assert fs.files.seek(handle, place * 4096, os.SEEK_HOLE) == (None if hole is None else hole * 4096)
    close(fs, handle)
    fs.end()


def test_a_seek_looks_at_no_more_of_a_file_than_it_must(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    for index in range(100):
        write(fs, handle, index * 2 * 4096, b"x" * 4096)
    fs.files.truncate(handle, 2**60)
    looked_at: list[int] = []
    plan = handle.inode.plan
    monkeypatch.setattr(handle.inode, "plan", lambda a, b: (looked_at.append(b - a), plan(a, b))[1])
    assert fs.files.seek(handle, 0, os.SEEK_HOLE) == 4096
    assert fs.files.seek(handle, 4096, os.SEEK_DATA) == 8192
    assert sum(looked_at) <= 2 * contents.SEEK_BYTES
    assert fs.files.seek(handle, 200 * 4096, os.SEEK_DATA) is None
    assert len(looked_at) < 60
    close(fs, handle)
