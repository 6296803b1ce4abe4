"""How directories are listed, over an in-memory server: how many calls, and what is learnt by them."""

from __future__ import annotations

import os

import pytest

from fusefs import directories
from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make
from wire.errors import (
    NoAttribute,
    NotSupported,
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
