"""O_APPEND from several mounts at once: every record whole, once, and each writer's in order."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import two_mounts

WRITER = """
import os, random, sys
path, name, count, largest, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
dice = random.Random(int(name))
access = os.O_RDWR if how == "cached" else os.O_WRONLY  # the latter goes past the kernel's pages
file = os.open(path, access | os.O_APPEND | os.O_CREAT)
for number in range(count):
    length = dice.randrange(largest)
    record = b"<%s %d %d " % (name.encode(), number, length) + name.encode()[:1] * length + b">"
    assert os.write(file, record) == len(record)
    if how == "fsync":
        os.fsync(file)
    if how in ("close", "cached"):
        os.close(file)
        file = os.open(path, access | os.O_APPEND)
os.close(file)
"""

READER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
length = 0
while length < int(sys.argv[2]):
    content = os.pread(file, 1 << 20, 0)
    if content.strip(b"x") or len(content) < length:
        sys.exit(f"{len(content)} bytes after {length}, of them {content.count(0)} zeros")
    length = len(content)
"""


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one cluster."""
    base = tmp_path_factory.mktemp("appends")
    with two_mounts(base) as places:
        yield places


@pytest.mark.parametrize(
    ("how", "count", "largest"),
    [
        ("fsync", 30, 5000),
        ("close", 30, 5000),
        ("cached", 30, 5000),
        ("none", 300, 5000),
        ("none", 12, 1 << 20),
    ],
)
def test_appends_of_many_writers(mounts: tuple[Path, Path], how: str, count: int, largest: int) -> None:
    name = f"log-{how}-{largest}"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, place / name, f"{number}", f"{count}", f"{largest}", how]
        )
        for number, place in enumerate(mounts * 4)
    ]
    for writer in writers:
        assert writer.wait(timeout=120) == 0
    for place in mounts:
        os.setxattr(place, "user.quorumfs.drop_caches", b"")
        check((place / name).read_bytes(), len(writers), count)


def test_readers_beside_an_appender_of_their_mount(mounts: tuple[Path, Path]) -> None:
    """What a read put into the kernel's pages during an append is not shown behind the old end."""
    path, records = mounts[0] / "followed", 300
    path.touch()
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, path, f"{records}"], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for _ in range(records):
        with path.open("ab", buffering=0) as file:
            file.write(b"x")
            os.fsync(file.fileno())
    assert [reader.communicate(timeout=60)[1] for reader in readers] == [b""] * 2


def test_files_that_are_appended_to_only_since_they_were_opened(mounts: tuple[Path, Path]) -> None:
    (mounts[0] / "later").write_bytes(b"old.")
    files = [os.open(place / "later", os.O_WRONLY) for place in mounts]
    for number, file in enumerate(files):
        fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
        os.write(file, b"%d." % number)
    for file in files:
        os.close(file)
    assert [(place / "later").read_bytes() for place in mounts] == [b"old.0.1."] * 2


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
@pytest.mark.parametrize("how", [0, os.O_APPEND, os.O_DIRECT])
def test_a_synchronous_write_is_committed_when_it_returns(
    mounts: tuple[Path, Path], how: int, flag: int
) -> None:
    name, block = f"synchronous-{how}-{flag}", mmap.mmap(-1, 4096)
    file = os.open(mounts[0] / name, os.O_WRONLY | os.O_CREAT | how | flag)
    for number in range(1, 3):
        os.writev(file, [block])
        assert len((mounts[1] / name).read_bytes()) == 4096 * number
    os.close(file)


def check(content: bytes, writers: int, count: int) -> None:
    """Every record is there once, whole; each writer's records are in their order."""
    found: dict[int, list[int]] = {writer: [] for writer in range(writers)}
    place = 0
    while place < len(content):
        head = re.compile(rb"<(\d) (\d+) (\d+) ").match(content, place)
        assert head is not None, f"no record at {place}: {content[place : place + 40]!r}"
        writer, number, length = map(int, head.groups())
        place = head.end() + length + 1
        assert content[head.end() : place] == b"%d" % writer * length + b">", f"writer {writer}, {number}"
        found[writer].append(number)
    assert found == {writer: list(range(count)) for writer in range(writers)}
