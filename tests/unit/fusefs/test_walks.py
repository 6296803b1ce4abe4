"""Paths on which another mount has changed a directory, over an in-memory server: how they are followed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable

import pytest

from fusefs.filesystem import FileSystem
from fusefs.walks import CALL_SECONDS, SAID, Walks
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close
from wire.errors import NotFound, StaleFile

WALKER = 7
DIRECTORY = stat.S_IFDIR | 0o755


class Paths:
    """`d/f`, which was looked up, and `next/f`, `next/new`: another mount puts `next` in the place of `d`."""

    def __init__(self, fs: FileSystem, server: FakeServer) -> None:
        self._fs, self._server = fs, server
        self.old, self.new = (fs.make(1, name, DIRECTORY, 0, 0).ino for name in (b"d", b"next"))
        for parent, name in ((self.old, b"f"), (self.new, b"f"), (self.new, b"new")):
            close(fs, fs.create(parent, name, 0o644, 0, 0, os.O_WRONLY)[1])
        fs._forget()
        self.walk(b"f")

    def walk(self, *names: bytes) -> int:
        """Look names up as the kernel does, the first one in `d`; return the last one's inode number."""
        ino = self._fs.names.lookup(1, b"d", WALKER).ino
        for name in names:
            ino = self._fs.names.lookup(ino, name, WALKER).ino
        return ino

    def swap(self) -> None:
        self._server.rename(1, b"d", 1, b"gone", 0)
        self._server.rename(1, b"next", 1, b"d", 0)
        self._server.calls.clear()


@pytest.fixture
def paths(fs: FileSystem, server: FakeServer) -> Paths:
    return Paths(fs, server)


def test_a_name_is_looked_up_where_the_path_leads_now(paths: Paths, server: FakeServer) -> None:
    paths.swap()
    with pytest.raises(StaleFile):
        paths.walk(b"new")
    assert server.calls == Counter(resolve=1), "the path is asked by the same call"
    assert paths.walk(b"new") == server.resolve(paths.new, [b"new"])[0].ino


CHANGES: dict[str, Callable[[FileSystem, int, int], object]] = {
    "unlink": lambda fs, parent, _: fs.unlink(parent, b"f", WALKER),
    "rmdir": lambda fs, parent, _: fs.rmdir(parent, b"f", WALKER),
    "rename": lambda fs, parent, _: fs.rename(parent, b"f", parent, b"g", 0, WALKER),
    "rename from elsewhere": lambda fs, parent, _: fs.rename(1, b"h", parent, b"g", 0, WALKER),
    "link": lambda fs, _, ino: fs.link(ino, 1, b"g", WALKER),
    "mkdir": lambda fs, parent, _: fs.make(parent, b"g", DIRECTORY, 0, 0, walker=WALKER),
    "create": lambda fs, parent, _: fs.create(parent, b"g", 0o644, 0, 0, os.O_WRONLY, WALKER),
    "readlink": lambda fs, _, ino: fs.read_link(ino, WALKER),
    "opendir": lambda fs, parent, _: fs.directories.open(parent, WALKER),
    "change by name": lambda fs, _, ino: fs.names.verify_unopened(ino, WALKER),
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_is_done_where_the_path_led_before(
    fs: FileSystem, paths: Paths, server: FakeServer, what: str
) -> None:
    paths.swap()
    ino = paths.walk(b"f")
    assert not server.calls, "all is known, for a second"
    with pytest.raises(StaleFile):
        CHANGES[what](fs, paths.old, ino)
    assert server.calls == Counter(resolve=1)
    assert paths.walk() == paths.new


def test_a_new_name_is_not_there_before_it_is_made(fs: FileSystem, paths: Paths) -> None:
    paths.swap()
    with pytest.raises(NotFound):
        paths.walk(b"g")
    with pytest.raises(StaleFile):  # which has the kernel walk anew, as it would not for the look-up
        fs.make(paths.old, b"g", DIRECTORY, 0, 0, walker=WALKER)
    with pytest.raises(NotFound):
        paths.walk(b"g")
    assert fs.make(paths.new, b"g", DIRECTORY, 0, 0, walker=WALKER)


@pytest.mark.parametrize(
    ("what", "method"),
    [
        ("unlink", "unlink"),
        ("rename", "rename"),
        ("rename from elsewhere", "rename"),
        ("mkdir", "create"),
        ("create", "create"),
    ],
)
def test_a_directory_that_is_removed_during_a_call_is_not_there(
    fs: FileSystem, paths: Paths, server: FakeServer, what: str, method: str
) -> None:
    fs._forget()
    ino = paths.walk(b"f")
    server.fail(method, StaleFile("it was removed"))
    with pytest.raises(NotFound):
        CHANGES[what](fs, paths.old, ino)


def test_a_file_that_is_replaced_while_it_gets_a_name_is_looked_for_once_more(
    fs: FileSystem, paths: Paths, server: FakeServer
) -> None:
    fs._forget()
    for told in (StaleFile, NotFound):
        ino = paths.walk(b"f")
        server.fail("link", NotFound("it has no name any more"))
        with pytest.raises(told):
            fs.link(ino, 1, b"g", WALKER)
        fs.names.walk_anew(WALKER)
    server.fail("link", NotFound("it has no name any more"))
    with pytest.raises(NotFound):
        fs.link(ino, 1, b"g", WALKER + 1)


def test_a_name_in_a_directory_that_is_removed_during_a_call_is_not_there(
    fs: FileSystem, paths: Paths, server: FakeServer
) -> None:
    fs._forget()
    paths.walk()
    for walker, told in ((WALKER, NotFound), (WALKER + 1, StaleFile)):
        server.fail("resolve", StaleFile("it was removed"))
        with pytest.raises(told):
            fs.names.lookup(paths.old, b"f", walker)


def test_who_walks_anew_is_told_what_the_server_says(
    fs: FileSystem, paths: Paths, server: FakeServer
) -> None:
    old = paths.walk(b"f")
    paths.swap()
    with pytest.raises(StaleFile):
        fs.open(old, os.O_RDONLY, WALKER)
    fs.names.walk_anew(WALKER)
    new = paths.walk(b"f")
    server.calls.clear()
    assert paths.walk(b"f") == new, "the kernel looks a name up twice if it is of another inode now"
    assert server.calls == Counter(resolve=2)
    close(fs, fs.open(new, os.O_RDONLY, WALKER)[0])
    assert fs.names.lookup(1, b"d", WALKER + 1).ino == paths.new
    assert server.calls == Counter(resolve=2, open=1)


def test_who_was_misled_walks_anew_for_a_moment_only() -> None:
    clock = Clock()
    walks = Walks(clock)
    walks.mislead(WALKER)
    assert walks.is_misled(WALKER)
    assert not walks.is_misled(WALKER + 1)
    clock.now += CALL_SECONDS
    assert not walks.is_misled(WALKER)


def test_a_path_is_asked_once_a_system_call(fs: FileSystem, paths: Paths, server: FakeServer) -> None:
    server.calls.clear()
    paths.walk(b"f")
    fs.unlink(paths.old, b"f", WALKER)
    assert server.calls == Counter(resolve=1, unlink=1)
    with pytest.raises(NotFound):
        paths.walk(b"g")
    server.calls.clear()
    fs.make(paths.old, b"g", DIRECTORY, 0, 0, walker=WALKER)
    assert server.calls == Counter(create=1)


def test_a_file_that_is_open_is_changed_by_its_descriptor_wherever_its_name_is(
    fs: FileSystem, paths: Paths, server: FakeServer
) -> None:
    handle, _ = fs.files.open(paths.walk(b"f"), os.O_RDONLY)
    ino = paths.walk(b"f")
    paths.swap()
    fs.names.verify_unopened(ino, WALKER)
    assert not server.calls
    close(fs, handle)


def test_the_names_of_a_file_that_is_open_are_those_that_the_server_says(
    fs: FileSystem, paths: Paths, server: FakeServer
) -> None:
    handle, _ = fs.files.open(paths.walk(b"f"), os.O_RDONLY)
    paths.swap()
    with pytest.raises(StaleFile):
        paths.walk(b"f")
    assert paths.walk(b"f") != handle.inode.ino
    close(fs, handle)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_two_paths_and_a_way_back_are_followed_from_their_beginning() -> None:
    walks = Walks(Clock())
    for parent, name, ino in ((1, b"a", 2), (1, b"b", 3), (2, b"c", 4), (3, b"d", 5), (3, b"e", 6)):
        walks.step(WALKER, parent, name, ino, fresh=False)
    for ino, names in ((2, [b"a"]), (4, [b"a", b"c"]), (6, [b"b", b"e"]), (3, [b"b"])):
        walk = walks.doubtful(WALKER, ino, 0)
        assert walk is not None and (walk.start, walk.names) == (1, names)
    assert walks.doubtful(0, 2, 0) is None
    assert walks.doubtful(WALKER, 1, 0) is None
    walk = walks.doubtful(WALKER, 3, 0)
    assert walk is not None
    walks.confirm(WALKER, walk)
    assert walks.doubtful(WALKER, 3, 0) is None
    walk = walks.doubtful(WALKER, 6, 0)
    assert walk is not None and walk.eras == [SAID, 0]


def test_who_was_there_before_this_system_call_came_by_no_names() -> None:
    clock = Clock()
    walks = Walks(clock)
    walks.step(WALKER, 1, b"a", 2, fresh=False)
    clock.now += CALL_SECONDS
    assert walks.doubtful(WALKER, 2, 0) is None
