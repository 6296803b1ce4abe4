"""Appends of several mounts to one file, over an in-memory server."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fusefs import files
from fusefs.files import (
    FALLOCATE_KEEP_SIZE,
    FALLOCATE_PUNCH_HOLE,
    FALLOCATE_ZERO_RANGE,
    PAGE_BYTES,
)
from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from tests.support import take_seed, wait_until
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, is_waiting, make, read, write
from wire.errors import QuorumfsError, SessionUnknown, WriteFailed
from wire.messages import Attributes


def open_log(fs: FileSystem) -> tuple[int, Handle]:
    ino = make(fs, b"a", b"old.")
    return ino, fs.files.open(ino, os.O_WRONLY | os.O_APPEND)[0]


class Dropper:
    """Notes how long each file was to its users when its pages were given to drop."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self.sizes: list[int] = []

    def drop_soon(self, ino: int) -> None:
        self.sizes.append(self._fs.attributes.get(ino).size)

    def drop_attributes(self, ino: int) -> None: ...

    def drop_now(self, ino: int) -> None: ...

    def await_drops(self, ino: int) -> None: ...


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


SIZED: dict[str, Callable[[FileSystem, int, Handle, int], object]] = {
    "ftruncate": lambda fs, _, handle, size: fs.files.truncate(handle, size),
    "truncate": lambda fs, ino, _, size: fs.files.truncate_unopened(ino, size),
    "fallocate": lambda fs, _, handle, size: fs.files.allocate(handle, 0, 0, size),
}


@pytest.mark.parametrize("how", SIZED)
def test_what_was_appended_before_the_size_is_set_is_behind_what_another_mount_appended(
    server: FakeServer, fs: FileSystem, how: str
) -> None:
    ino, handle = open_log(fs)
    write(fs, handle, 4, b"one.")
    server.replace(ino, b"old.other.")
    SIZED[how](fs, ino, handle, 20)
    close(fs, handle)
    assert server.committed(ino) == b"old.other.one." + bytes(6)


def test_a_file_that_is_written_anew_is_committed_whole_though_its_size_is_set(
    server: FakeServer, fs: FileSystem
) -> None:
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    write(fs, handle, 0, b"new.")
    fs.files.truncate(handle, 6)
    assert server.committed(ino) == b"old."
    close(fs, handle)
    assert server.committed(ino) == b"new." + bytes(2)


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


def meanwhile(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, when: str, act: Callable[[], None]
) -> None:
    """Have something happen before the next commit is carried out, or after it, before its answer."""
    write_file = server.write_file

    def write_and_act(*args: Any) -> Attributes:
        monkeypatch.setattr(server, "write_file", write_file)
        if when == "before":
            act()
        attributes = write_file(*args)
        if when == "after":
            act()
        return attributes

    monkeypatch.setattr(server, "write_file", write_and_act)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("newer", [b"", b"newer"])
def test_a_commit_that_was_overwritten_before_its_session_died_is_not_done_again(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, flags: int, newer: bytes
) -> None:
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, flags)
    write(fs, handle, 0, b"mine")

    def overwrite() -> None:
        server.replace(ino, newer)
        error = SessionUnknown()
        error.resent = True
        raise error

    meanwhile(server, monkeypatch, "after", overwrite)
    with pytest.raises(SessionUnknown):
        fs.files.flush(handle)
    fs.files.release(handle)
    assert server.committed(ino) == newer


@pytest.mark.parametrize("is_carried_out", [False, True])
def test_a_write_whose_call_was_lost_with_its_session_is_carried_out(
    server: FakeServer, fs: FileSystem, is_carried_out: bool
) -> None:
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"new.")
    error = SessionUnknown()
    error.resent = True
    server.fail("answer write_file" if is_carried_out else "write_file", error)
    close(fs, handle)
    assert (server.committed(ino), server.calls["getattr"]) == (b"new.", 1)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("look", ["open", "read on"])
def test_who_reads_while_an_append_is_committed_sees_whole_records(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, when: str, look: str
) -> None:
    ino, handle = open_log(fs)
    reader, _ = fs.files.open(ino, os.O_RDONLY)
    write(fs, handle, 4, b"one.")
    seen: list[bytes] = []

    def read_it() -> None:
        seen.append(read(fs, ino) if look == "open" else bytes(fs.files.read(reader, 0, 100)))

    threads = [threading.Thread(target=read_it) for _ in range(2)]

    def append_elsewhere() -> None:
        server.replace(ino, server.committed(ino) + b"another.")
        if look == "read on":
            handle.inode.committed.reset(handle.inode.base().version)
        for thread in threads:
            thread.start()
            thread.join(0.1)

    meanwhile(server, monkeypatch, when, append_elsewhere)
    close(fs, handle)
    for thread in threads:
        thread.join(5)
    whole = b"old.another.one." if when == "before" else b"old.one.another."
    assert server.committed(ino) == whole
    assert seen == [whole, whole]
    close(fs, reader)


def test_a_file_that_was_replaced_before_the_answer_to_a_commit_is_the_newer_one(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"ours")
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.append(read(fs, ino)))

    def replace() -> None:
        server.replace(ino, b"theirs, later")
        reader.start()
        reader.join(0.1)

    meanwhile(server, monkeypatch, "after", replace)
    close(fs, handle)
    reader.join(5)
    assert seen == [b"theirs, later"]


def test_a_failed_commit_lets_those_go_on_who_wait_for_it(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, handle = open_log(fs)
    write(fs, handle, 4, b"one.")
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.append(read(fs, ino)))

    def append_elsewhere() -> None:
        server.replace(ino, b"old.another.")
        reader.start()
        reader.join(0.1)

    meanwhile(server, monkeypatch, "before", append_elsewhere)
    server.fail("write_file", WriteFailed("two servers are gone"))
    with pytest.raises(WriteFailed):
        close(fs, handle)
    reader.join(5)
    assert seen == [b"old.another."]


def test_pages_filled_since_the_last_drop_are_dropped_at_a_write_past_them(
    server: FakeServer, fs: FileSystem
) -> None:
    """The kernel drops them before it sends such a write: a read comes between, and would be shown longer."""
    dropper = Dropper(fs)
    fs.drop_pages_with(dropper)
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
    handle.uncached = True
    write(fs, handle, 4, b"1")  # what was written through the pages may be in them still
    write(fs, handle, 5, b"2")
    assert dropper.sizes == [5]
    assert read(fs, ino) == b"old.12"
    write(fs, handle, 6, b"3")
    close(fs, handle)
    assert dropper.sizes == [5, 7]
    handle, _ = fs.files.open(ino, os.O_RDWR)
    fs.files.write(handle, 0, memoryview(b"new"), direct=True)
    assert dropper.sizes == [5, 7]
    write(fs, handle, 0, b"NEW")
    fs.files.write(handle, 0, memoryview(b"two"), direct=True)
    close(fs, handle)
    assert dropper.sizes == [5, 7, 7]
    _, handle = fs.create(1, b"b", 0o644, 0, 0, os.O_WRONLY | os.O_APPEND)
    handle.uncached = True
    write(fs, handle, 0, b"1")
    close(fs, handle)
    assert dropper.sizes == [5, 7, 7], "of a new file the kernel has no pages"


@pytest.mark.parametrize("is_learnt", [False, True])
def test_a_write_at_a_place_stays_there_when_the_end_moves_before_it(
    server: FakeServer, fs: FileSystem, is_learnt: bool
) -> None:
    ino, handle = open_log(fs)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"end.")
    write(fs, other, 2, b"D.")
    server.replace(ino, b"o")
    if is_learnt:
        assert read(fs, ino) == b"o\0D.end."
    close(fs, other)
    close(fs, handle)
    assert server.committed(ino) == b"o\0D.end."


@pytest.mark.parametrize(("offset", "is_kept"), [(8, True), (4, False)])
def test_an_append_through_pages_at_another_place_has_them_dropped(
    server: FakeServer, fs: FileSystem, offset: int, is_kept: bool
) -> None:
    ino = make(fs, b"a", b"old.")
    server.replace(ino, b"old.more")
    handle, _ = fs.files.open(ino, os.O_RDWR)
    assert bytes(fs.files.read(handle, 0, 9)) == b"old.more"
    fs.files.write(handle, offset, memoryview(b"end."), appending=True)
    close(fs, handle)
    assert server.committed(ino) == b"old.moreend."
    later, keep = fs.files.open(ino, os.O_RDONLY)
    assert keep == is_kept
    close(fs, later)


def test_no_page_is_dropped_before_a_truncation_is_answered(server: FakeServer, fs: FileSystem) -> None:
    """The kernel may have changed pages, in a memory map, and sends none before the answer."""
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_RDWR)
    server.replace(ino, b"old.more.")
    dropper = Dropper(fs)
    fs.drop_pages_with(dropper)
    fs.files.truncate(handle, 4)
    assert not dropper.sizes
    close(fs, handle)
    assert server.committed(ino) == b"old."
    assert read(fs, ino) == b"old."


def test_a_commit_that_fails_in_a_way_that_nobody_foresaw_has_nobody_wait_for_ever(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, handle = open_log(fs)
    write(fs, handle, 4, b"one.")

    def fail() -> None:
        server.replace(ino, b"old.another.")
        raise ValueError("not foreseen")

    meanwhile(server, monkeypatch, "before", fail)
    with pytest.raises(ValueError, match="not foreseen"):
        fs.files.flush(handle)
    assert not handle.inode.is_changed()
    assert read(fs, ino) == b"old.another."
    with pytest.raises(QuorumfsError, match="not foreseen"):
        close(fs, handle)


@pytest.mark.parametrize("offset", [20, 6])
def test_a_write_at_a_place_past_an_append_stays_there_when_others_append(
    server: FakeServer, fs: FileSystem, offset: int
) -> None:
    ino, handle = open_log(fs)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 4, b"mine")
    write(fs, other, offset, b"X")
    server.replace(ino, server.committed(ino) + b"+theirs")
    close(fs, other)
    close(fs, handle)
    content = server.committed(ino)
    assert content[offset : offset + 1] == b"X"
    assert content.replace(b"X", b"").replace(b"\0", b"") in (b"old.mine+theirs", b"old.mie+theirs")


@pytest.mark.parametrize("how", ["truncate", "allocate", "truncate by name", "punch"])
def test_what_is_made_longer_after_an_append_overwrites_no_append_of_others(
    server: FakeServer, fs: FileSystem, how: str
) -> None:
    ino, handle = open_log(fs)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 4, b"mine.")
    match how:
        case "truncate":
            fs.files.truncate(other, 50)
        case "truncate by name":
            fs.files.truncate_unopened(ino, 50)
        case "allocate":
            fs.files.allocate(other, 0, 0, 50)
        case "punch":
            fs.files.allocate(other, FALLOCATE_KEEP_SIZE | FALLOCATE_PUNCH_HOLE, 6, 1)
    server.replace(ino, server.committed(ino) + b"theirs.")
    close(fs, other)
    close(fs, handle)
    content = server.committed(ino).replace(b"\0", b"")
    assert content == (b"old.mie.theirs." if how == "punch" else b"old.mine.theirs.")


def test_a_rewrite_that_appends_is_not_committed_by_writes_at_places(
    server: FakeServer, fs: FileSystem
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"new")
    write(fs, other, 5, b"er")
    assert server.committed(ino) == b"old"
    server.replace(ino, b"another")
    close(fs, other)
    close(fs, handle)
    assert server.committed(ino) == b"new\0\0er"


def test_a_rewrite_that_begins_while_a_write_at_a_place_waits_for_appends_is_not_shown_by_halves(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, handle = open_log(fs)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 4, b"one.")
    write_file, writer = server.write_file, threading.Thread(target=write, args=(fs, other, 20, b"far"))

    def begin_anew(*arguments: Any) -> Attributes:
        monkeypatch.setattr(server, "write_file", write_file)
        write(fs, handle, 8, b"two.")
        writer.start()
        wait_until(lambda: not writer.is_alive() or is_waiting(writer), 5, "the writer waits")
        fs.files.truncate(handle, 0)
        write(fs, handle, 0, b"ne")
        return write_file(*arguments)

    monkeypatch.setattr(server, "write_file", begin_anew)
    fs.files.flush(handle)
    writer.join(5)
    assert server.committed(ino) == b"old.one."
    close(fs, other)
    close(fs, handle)
    assert server.committed(ino) == b"ne".ljust(20, b"\0") + b"far"


CHANGES: dict[str, Callable[[FileSystem, int, Handle], object]] = {
    "write": lambda fs, ino, handle: write(fs, handle, PAGE_BYTES + 2, b"x"),
    "ftruncate": lambda fs, ino, handle: fs.files.truncate(handle, PAGE_BYTES + 2),
    "truncate": lambda fs, ino, handle: fs.files.truncate_unopened(ino, PAGE_BYTES + 2),
    "fallocate": lambda fs, ino, handle: fs.files.allocate(handle, 0, PAGE_BYTES, 2),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_at_a_place_does_not_wait_for_more_of_an_append(
    server: FakeServer, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The kernel lets no two changes of a file overlap: that one has come shows that the append is whole."""
    monkeypatch.setattr(files, "UNFINISHED_SECONDS", 20.0)
    ino = make(fs, b"a", b"")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    fs.files.write(handle, 0, memoryview(bytes(PAGE_BYTES)), thread=5)
    change = threading.Thread(target=CHANGES[how], args=(fs, ino, other), daemon=True)
    change.start()
    change.join(10)
    assert not change.is_alive()
    close(fs, other)
    close(fs, handle)
    assert server.committed(ino).startswith(bytes(PAGE_BYTES) + b"\0\0")


@pytest.mark.parametrize("action", [FALLOCATE_PUNCH_HOLE, FALLOCATE_ZERO_RANGE])
def test_an_append_takes_no_hole_along_that_lies_past_the_end_known_here(
    server: FakeServer, fs: FileSystem, action: int
) -> None:
    """A hole past that end is of what another mount appended: it stays where it was asked for."""
    ino, handle = open_log(fs)
    other, _ = fs.files.open(ino, os.O_WRONLY)
    server.replace(ino, b"old.theirs.")
    fs.files.allocate(other, action | FALLOCATE_KEEP_SIZE, 2, 7)
    write(fs, handle, 4, b"mine.")
    close(fs, other)
    close(fs, handle)
    assert server.committed(ino) == b"ol" + bytes(7) + b"s.mine."


def test_a_hole_in_a_file_that_is_written_anew_has_nothing_to_do_with_its_old_length(
    server: FakeServer, fs: FileSystem
) -> None:
    ino, handle = open_log(fs)
    server.replace(ino, b"old.and.very.long.")
    fs.files.truncate(handle, 0)
    write(fs, handle, 0, b"new.")
    fs.files.allocate(handle, FALLOCATE_PUNCH_HOLE | FALLOCATE_KEEP_SIZE, 2, 16)
    write(fs, handle, 4, b"mine.")
    close(fs, handle)
    assert server.committed(ino) == b"ne\0\0mine."
