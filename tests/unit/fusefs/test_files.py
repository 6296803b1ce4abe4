"""The file system over an in-memory server: what a close commits, what is read, how many calls."""

from __future__ import annotations

import os
import random
import stat
import threading
from collections import Counter
from typing import Any

import pytest

from fusefs import commits
from fusefs.filesystem import FileSystem
from tests.support import wait_until
from tests.unit.fusefs.fakes import FakeServer, file_system
from tests.unit.fusefs.work import close, is_waiting, make, read, write
from wire.digest import BLOCK_BYTES
from wire.errors import (
    DigestMismatch,
    ReadRefused,
    StaleFile,
    WriteFailed,
)
from wire.messages import AttributeChanges, Attributes, BlockPart

MIB = BLOCK_BYTES


def test_a_small_file_is_two_calls(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"1234")
    assert server.calls == Counter(create=1, write_file=1)
    assert server.committed(ino) == b"1234"
    assert server.commits[0].extend_to == 4


def test_nothing_is_visible_before_close(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"x" * 3 * MIB)
    assert server.committed(ino) == b"old"
    assert read(fs, ino) == b"x" * 3 * MIB
    assert fs.attributes.get(ino).size == 3 * MIB
    close(fs, handle)
    assert server.committed(ino) == b"x" * 3 * MIB
    assert read(fs, ino) == b"x" * 3 * MIB


def test_full_buffers_are_put_before_close(fs: FileSystem, server: FakeServer) -> None:
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x" * (2 * MIB + 5))
    wait_until(lambda: server.calls["put_block"] == 2, 5, "two blocks are put")
    close(fs, handle)
    assert server.calls["put_block"] == 2
    assert server.calls["write_file"] == 1


def test_fsync_of_a_file_without_a_byte_makes_its_name_durable(fs: FileSystem, server: FakeServer) -> None:
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    fs.files.fsync(handle)
    assert server.calls["sync_metadata"] == 1
    close(fs, handle)


def test_fsync_is_durable_once_and_for_all(fs: FileSystem, server: FakeServer) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x" * (MIB + 1))
    fs.files.fsync(handle)
    assert server.commits[-1].durable
    assert len(server.durable) == 2
    server.calls.clear()
    fs.files.fsync(handle)
    assert server.calls == {"sync_metadata": 1}
    server.calls.clear()
    write(fs, handle, 0, b"y")
    fs.files.flush(handle)
    assert not server.commits[-1].durable
    fs.files.fsync(handle)
    assert server.durable == set(server.blocks)
    assert server.calls["sync_metadata"] == 1
    close(fs, handle)
    assert server.committed(attributes.ino) == b"y" + b"x" * MIB


def make_durable(fs: FileSystem, name: bytes, content: bytes) -> int:
    attributes, handle = fs.create(1, name, 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, content)
    fs.files.fsync(handle)
    close(fs, handle)
    return attributes.ino


def append_durably(fs: FileSystem, server: FakeServer, ino: int) -> set[str]:
    """Return what is called for it, but for opening and closing the file."""
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    server.calls.clear()
    write(fs, handle, server.getattr(ino).size, b"more")
    fs.files.fsync(handle)
    called = set(server.calls) - {"getattr"}
    close(fs, handle)
    return called


def test_what_was_made_durable_stays_so_when_it_is_opened_again(fs: FileSystem, server: FakeServer) -> None:
    ino = make_durable(fs, b"a", b"x" * (MIB + 1))
    for _ in range(3):
        assert append_durably(fs, server, ino) == {"write_file"}
        assert server.durable == set(server.blocks)
    assert server.committed(ino) == b"x" * (MIB + 1) + b"more" * 3


def test_what_was_changed_since_is_made_durable(fs: FileSystem, server: FakeServer) -> None:
    ino = make_durable(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"new")
    close(fs, handle)
    assert "sync_blocks" in append_durably(fs, server, ino)
    assert append_durably(fs, server, ino) == {"write_file"}
    server.replace(ino, b"by another mount")
    assert "sync_blocks" in append_durably(fs, server, ino)
    assert server.durable >= set(server.blocks)


def test_fsync_of_a_file_replaced_under_it_syncs_the_newer_one(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_RDWR)
    server.replace(ino, b"newer")
    fs.files.fsync(handle)
    assert server.durable == set(server.blocks)
    server.fail("sync_blocks", WriteFailed("two servers are gone"))
    server.replace(ino, b"newest")
    assert read(fs, ino) == b"newest"
    with pytest.raises(WriteFailed):
        fs.files.fsync(handle)
    close(fs, handle)


def test_a_file_replaced_under_a_reader_is_read_anew(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_RDONLY)
    server.replace(ino, b"newer")
    assert bytes(fs.files.read(handle, 0, 100)) == b"newer"
    close(fs, handle)


def test_a_read_that_stays_refused_is_refused(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    server.fail("read_block", ReadRefused("three are corrupt", {"reason": "quorum"}))
    with pytest.raises(ReadRefused):
        read(fs, ino)
    assert server.calls["read_block"] == 1
    assert read(fs, ino) == b"old"


def test_bytes_that_do_not_match_the_witness_are_never_passed_on(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(fs, b"a", b"old")
    lies = [BlockPart(3, b"", b"bad"), BlockPart(3, b"", b"ol"), BlockPart(3, b"", b"old")]
    monkeypatch.setattr(server, "read_block", lambda *_: lies.pop(0))
    monkeypatch.setattr(server, "open_and_read", lambda ino, *walk: server.open(ino, False, *walk))
    assert read(fs, ino) == b"old"
    lies[:] = [BlockPart(3, b"", b"bad")] * 3
    fs.xattrs.set(ino, b"user.quorumfs.drop_caches", b"", 0)
    with pytest.raises(DigestMismatch):
        read(fs, ino)
    assert not lies


def test_a_truncation_by_name_is_committed_though_the_file_is_open_for_writing(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = make(fs, b"log", b"old content")
    writer, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
    assert fs.files.truncate_unopened(ino, 3).size == 3
    assert server.committed(ino) == b"old"
    write(fs, writer, 0, b"er")
    close(fs, writer)
    assert server.committed(ino) == b"older"


def test_old_dirty_data_is_committed_unless_it_rewrites_a_file(server: FakeServer) -> None:
    fs = file_system(server, age_seconds=0)
    log_ino, rewritten_ino = make(fs, b"log", b"one\n"), make(fs, b"rewritten", b"old")
    log, _ = fs.files.open(log_ino, os.O_WRONLY | os.O_APPEND)
    rewritten, _ = fs.files.open(rewritten_ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, log, 0, b"two\n")
    write(fs, rewritten, 0, b"new")
    puts = server.calls["put_block"]
    fs.begin()
    wait_until(lambda: server.committed(log_ino) == b"one\ntwo\n", 5, "the log is committed")
    wait_until(lambda: server.calls["put_block"] > puts, 5, "the rewritten file is put")
    assert server.committed(rewritten_ino) == b"old"
    close(fs, rewritten)
    assert server.committed(rewritten_ino) == b"new"
    close(fs, log)
    fs.end()


def test_old_data_that_waits_for_data_servers_holds_up_no_other_chore(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `unavailable = "wait"` that may last for days."""
    monkeypatch.setattr("fusefs.filesystem.CHORE_SECONDS", 0.01)
    fs = file_system(server, age_seconds=0)
    ino = make(fs, b"a", b"old")
    is_waiting, may_go_on, permit = threading.Event(), threading.Event(), server.require_writable

    def wait_for_servers() -> None:
        is_waiting.set()
        assert may_go_on.wait(10)

    monkeypatch.setattr(server, "require_writable", wait_for_servers)
    fs.begin()
    assert is_waiting.wait(10)
    closed = server.calls["close"]
    read(fs, ino)
    try:
        wait_until(lambda: server.calls["close"] > closed, 5, "the close is told")
    finally:
        monkeypatch.setattr(server, "require_writable", permit)
        may_go_on.set()
        fs.end()


def test_a_rewrite_that_begins_while_an_old_change_waits_for_its_commit_is_not_shown_by_halves(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = file_system(server, age_seconds=0)
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"OLD")
    write_file, chore = server.write_file, threading.Thread(target=fs._write_out_old)

    def begin_anew(*arguments: Any) -> Attributes:
        monkeypatch.setattr(server, "write_file", write_file)
        write(fs, handle, 3, b"er")
        chore.start()
        # The chore waits for this commit now, or is about to.
        wait_until(lambda: not chore.is_alive() or is_waiting(chore), 5, "the chore waits")
        fs.files.truncate(handle, 0)
        write(fs, handle, 0, b"ne")
        return write_file(*arguments)

    monkeypatch.setattr(server, "write_file", begin_anew)
    fs.files.flush(handle)
    chore.join(5)
    assert server.committed(ino) == b"OLD"
    write(fs, handle, 2, b"w")
    close(fs, handle)
    assert server.committed(ino) == b"new"


def test_memory_is_bounded_and_given_back(server: FakeServer) -> None:
    fs = file_system(server, dirty_bytes=8 * MIB)
    budget = fs._writeback.budget
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    for index in range(40):
        write(fs, handle, index * MIB + 1, b"x" * (MIB - 2))
        assert budget.used <= 7 * MIB
    close(fs, handle)
    wait_until(lambda: budget.used == 0, 5, "all is given back")
    server.fail("put_block", *[WriteFailed()] * 3)
    _, handle = fs.create(1, b"b", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x" * (3 * MIB + 7))
    with pytest.raises(WriteFailed):
        fs.files.flush(handle)
    fs.files.release(handle)
    wait_until(lambda: budget.used == 0, 5, "all is given back after a failure")
    fs.end()


def test_very_many_extents_are_committed_in_steps(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "MOST_EXTENTS_A_COMMIT", 10)
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    for index in range(35):
        write(fs, handle, index * 1000, bytes([index]))
    close(fs, handle)
    assert [len(commit.extents) for commit in server.commits] == [10, 10, 10, 5]
    content = server.committed(attributes.ino)
    assert [content[index * 1000] for index in range(35)] == list(range(35))


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_an_open_that_truncates_is_committed_at_close(
    fs: FileSystem, server: FakeServer, access: int
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.open(ino, access | os.O_TRUNC)
    assert server.committed(ino) == b"old"
    close(fs, handle)
    assert server.committed(ino) == b""


@pytest.mark.parametrize(
    ("mode", "uid", "is_opened"),
    [
        (stat.S_IFREG | 0o600, 0, False),
        (stat.S_IFREG | 0o600, 1000, True),
        (stat.S_IFLNK | 0o777, 1000, False),
    ],
)
def test_what_another_mount_made_first_is_opened_only_by_its_owner(
    fs: FileSystem, server: FakeServer, mode: int, uid: int, is_opened: bool
) -> None:
    other = file_system(server)
    made = other.make(1, b"a", mode, uid, uid)
    server.setattr(made.ino, AttributeChanges(uid=uid))
    if is_opened:
        attributes, handle = fs.create(1, b"a", 0o644, 1000, 1000, os.O_RDWR)
        assert attributes.ino == made.ino
        close(fs, handle)
    else:
        with pytest.raises(StaleFile):
            fs.create(1, b"a", 0o644, 1000, 1000, os.O_RDWR)
        assert not server.open_inodes
    other.end()


@pytest.mark.parametrize("size", [3, 5])
def test_a_truncation_cuts_off_what_another_mount_appended_before_it(
    fs: FileSystem, server: FakeServer, size: int
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    server.replace(ino, b"old and more")
    fs.files.truncate(handle, size)
    close(fs, handle)
    assert server.committed(ino) == b"old and more"[:size]


def test_an_inode_is_closed_late_and_opened_again_without_a_call(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"1")
    assert server.calls["close"] == 0
    assert ino in server.open_inodes
    handle, _ = fs.files.open(ino, os.O_RDONLY)
    fs._opens.tell_closed()
    assert ino in server.open_inodes
    close(fs, handle)
    fs._opens.tell_closed()
    assert ino not in server.open_inodes


def test_a_walk_through_the_cache_is_verified_at_open(fs: FileSystem, server: FakeServer) -> None:
    old, new = make(fs, b"old", b"old"), make(fs, b"new", b"new")
    fs.names.lookup(1, b"old", walker=7)
    server.rename(1, b"new", 1, b"old", 0)  # by another mount
    assert fs.names.lookup(1, b"old", walker=7).ino == old
    with pytest.raises(StaleFile):
        fs.open(old, os.O_RDONLY, walker=7)
    assert fs.names.lookup(1, b"old", walker=7).ino == new
    server.calls.clear()
    handle, _ = fs.open(new, os.O_RDONLY, walker=7)
    close(fs, handle)
    assert server.calls == Counter(open=1)
    fs.names.lookup(1, b"old", walker=7)
    close(fs, fs.open(new, os.O_RDONLY, walker=7)[0])
    assert server.calls == Counter(open=2), "the path is verified by the same call"


@pytest.mark.parametrize("seed", range(12))
def test_random_work_is_what_a_bytearray_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    monkeypatch.setattr("fusefs.committed.MOST_CACHED_EXTENTS", 4)
    server = FakeServer()
    server.first_run = dice.choice([1, 3, 256])
    fs = file_system(server, dirty_bytes=4 * MIB)
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_RDWR)
    ino, model, committed = attributes.ino, bytearray(), b""
    for _ in range(150):
        place = dice.choice([dice.randrange(3 * MIB), dice.randrange(2000), MIB - 10])
        action = dice.randrange(12)
        if action < 5:
            data = dice.randbytes(dice.choice([1, 100, 70_000, MIB]))
            write(fs, handle, place, data)
            model.extend(bytes(max(0, place + len(data) - len(model))))
            model[place : place + len(data)] = data
        elif action == 5:
            fs.files.truncate(handle, place)
            del model[place:]
            model.extend(bytes(place - len(model)))
        elif action == 6 and place < len(model):
            fs.files.allocate(handle, 3, place, 5000)
            end = min(place + 5000, len(model))
            model[place:end] = bytes(end - place)
        elif action == 7:
            fs.files.flush(handle)
            committed = bytes(model)
        elif action == 8:
            fs.files.fsync(handle)
            committed = bytes(model)
        elif action == 9:
            fs._writeback.write_out(handle.inode)
        elif action == 10 and dice.random() < 0.3:
            server.fail("write_file", WriteFailed("on purpose"))
            write(fs, handle, 0, b"!")
            with pytest.raises(WriteFailed):
                fs.files.flush(handle)
            with pytest.raises(WriteFailed):
                fs.files.fsync(handle)
            model = bytearray(committed)
        else:
            size = dice.choice([10, 100_000, 2 * MIB])
            assert bytes(fs.files.read(handle, place, size)) == model[place : place + size]
        assert fs.attributes.get(ino).size == len(model)
        assert server.committed(ino) == committed
    close(fs, handle)
    assert server.committed(ino) == model
    assert read(fs, ino) == model
    fs.end()
    assert fs._writeback.budget.used == 0
