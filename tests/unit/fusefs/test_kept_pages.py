"""When the kernel may keep its pages of a file at an open, over an in-memory server."""

from __future__ import annotations

import os

import pytest

from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make, read, write
from wire.errors import (
    WriteFailed,
)


def test_pages_are_kept_only_while_the_contents_are_this_mounts(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")

    def keeps(flags: int = os.O_RDONLY) -> bool:
        handle, keep = fs.files.open(ino, flags)
        close(fs, handle)
        return keep

    assert keeps()
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"mine")
    close(fs, handle)
    assert keeps()
    server.replace(ino, b"theirs")
    assert not keeps()
    assert keeps()
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"failed")
    server.fail("write_file", WriteFailed())
    with pytest.raises(WriteFailed):
        fs.files.fsync(handle)
    assert not keeps()
    server.replace(ino, b"between")
    write(fs, handle, 0, b"B")
    close(fs, handle)
    assert not keeps()
    assert read(fs, ino) == b"Between"


@pytest.mark.parametrize("theirs", [b"new!", b"newer!!!"])
def test_a_commit_that_changes_no_byte_does_not_hide_another_mounts(
    fs: FileSystem, server: FakeServer, theirs: bytes
) -> None:
    ino = make(fs, b"a", b"old!")
    handle, _ = fs.files.open(ino, os.O_RDWR)
    assert read(fs, ino) == b"old!"
    server.replace(ino, theirs)
    if len(theirs) == 4:
        fs.files.truncate(handle, 4)
    else:
        fs.files.allocate(handle, 0, 0, 6)
    fs.files.flush(handle)
    later, keep = fs.files.open(ino, os.O_RDONLY)
    assert not keep, "the kernel's pages are of the older version"
    assert bytes(fs.files.read(later, 0, 100)) == theirs
    close(fs, later)
    close(fs, handle)


def test_pages_are_kept_once_an_open_that_drops_them_is_taken_in(fs: FileSystem, server: FakeServer) -> None:
    """The answer to a later open may be the first that the kernel takes in."""
    ino = make(fs, b"a", b"old")
    server.replace(ino, b"theirs")
    first, keep = fs.files.open(ino, os.O_RDONLY)
    assert not keep
    second, keep = fs.files.open(ino, os.O_RDONLY)
    assert not keep
    fs.files.read(first, 0, 10)
    third, keep = fs.files.open(ino, os.O_RDONLY)
    assert keep
    for handle in (first, second, third):
        close(fs, handle)


@pytest.mark.parametrize("news", ["a failed write", "another change"])
def test_an_open_that_is_taken_in_late_has_no_wrong_pages_kept(
    fs: FileSystem, server: FakeServer, news: str
) -> None:
    ino = make(fs, b"a", b"old")
    server.replace(ino, b"theirs")
    late, _ = fs.files.open(ino, os.O_RDONLY)
    if news == "a failed write":
        writer, _ = fs.files.open(ino, os.O_WRONLY)
        write(fs, writer, 0, b"failed")
        server.fail("write_file", WriteFailed())
        with pytest.raises(WriteFailed):
            close(fs, writer)
    else:
        server.replace(ino, b"theirs again")
        close(fs, fs.files.open(ino, os.O_RDONLY)[0])
        fs._pages.doubt(ino)
    fs.files.read(late, 0, 10)
    handle, keep = fs.files.open(ino, os.O_RDONLY)
    assert not keep
    close(fs, handle)
    close(fs, late)


def test_the_open_within_a_truncation_by_name_is_not_the_kernels(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old content")
    server.replace(ino, b"other bytes")
    fs.files.truncate_unopened(ino, 3)
    assert server.committed(ino) == b"oth"
    handle, keep = fs.files.open(ino, os.O_RDONLY)
    assert not keep
    close(fs, handle)
