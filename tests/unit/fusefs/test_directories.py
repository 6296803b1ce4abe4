"""Directories over an in-memory server: how they are listed, and what they are like once removed."""

from __future__ import annotations

import os
import stat

import pytest

from fusefs import directories
from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make
from wire.errors import (
    NoAttribute,
    NotSupported,
    StaleFile,
)


def test_a_listing_spares_a_call_for_each_files_security_attributes(
    fs: FileSystem, server: FakeServer
) -> None:
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    close(fs, handle)
    fs._cache.forget()
    (entry,) = fs.directories.read(fs.directories.open(1), restart=False)
    server.calls.clear()
    for name, error in ((b"security.selinux", NotSupported), (b"security.capability", NoAttribute)):
        with pytest.raises(error):
            fs.xattrs.get(entry.attributes.ino, name)
    assert not server.calls
    with pytest.raises(NoAttribute):
        fs.xattrs.get(entry.attributes.ino, b"user.x")
    assert server.calls["get_xattr"] == 1


def test_a_long_directory_is_read_as_it_is_needed_and_each_name_once(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "DIRECTORY_RUN", 10)
    for number in range(35):
        make(fs, b"%02d" % number, b"")
    server.calls.clear()
    handle = fs.directories.open(1)
    assert len(fs.directories.read(handle, True, 5)) == 10
    assert len(fs.directories.read(handle, False, 11)) == 20
    assert server.calls["read_directory"] == 2
    fs.unlink(1, b"03")
    fs.unlink(1, b"34")
    make(fs, b"00 comes too late", b"")
    make(fs, b"33 comes in time", b"")
    names = [entry.name for entry in fs.directories.read(handle, False)]
    assert names == [b"%02d" % number for number in range(34)] + [b"33 comes in time"]
    assert server.calls["read_directory"] == 4
    names = [entry.name for entry in fs.directories.read(handle, True)]
    there = {b"%02d" % number for number in range(34) if number != 3}
    assert set(names) == there | {b"00 comes too late", b"33 comes in time"}
    assert len(names) == len(set(names))


def test_a_directory_that_is_open_and_removed_has_no_extended_attributes(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = fs.make(1, b"d", stat.S_IFDIR | 0o755, 0, 0).ino
    fs.directories.open(ino)
    fs.rmdir(1, b"d")
    with pytest.raises(NoAttribute):
        fs.xattrs.get(ino, b"user.colour")
    assert fs.xattrs.list(ino) == []
    with pytest.raises(StaleFile):
        fs.xattrs.list(ino + 1)
