"""The file system over an in-memory server: what a close commits, what a failure undoes, how many calls."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fusefs import ahead, inodes, writeback
from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from tests.support import take_seed, wait_until
from tests.unit.fusefs.fakes import FakeServer, file_system
from wire.digest import BLOCK_BYTES
from wire.errors import (
    DeadlineExceeded,
    DigestMismatch,
    NoAttribute,
    NoSpace,
    NotFound,
    NotSupported,
    ReadRefused,
    SessionUnknown,
    StaleFile,
    WriteFailed,
    WriteRefused,
)
from wire.messages import AttributeChanges, BlockPart, Opened

MIB = BLOCK_BYTES


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def fs(server: FakeServer) -> Iterator[FileSystem]:
    made = file_system(server)
    yield made
    made.end()


def write(fs: FileSystem, handle: Handle, offset: int, data: bytes) -> None:
    fs.files.write(handle, offset, memoryview(data))


def close(fs: FileSystem, handle: Handle) -> None:
    try:
        fs.files.flush(handle)
    finally:
        fs.files.release(handle)


def make(fs: FileSystem, name: bytes, content: bytes) -> int:
    attributes, handle = fs.create(1, name, 0o644, 0, 0, os.O_WRONLY)
    if content:
        write(fs, handle, 0, content)
    close(fs, handle)
    return attributes.ino


def read(fs: FileSystem, ino: int, offset: int = 0, size: int = 1 << 24) -> bytes:
    handle, _ = fs.files.open(ino, os.O_RDONLY)
    try:
        return bytes(fs.files.read(handle, offset, size))
    finally:
        close(fs, handle)


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
    assert fs.getattr(ino).size == 3 * MIB
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


def test_a_failed_put_leaves_the_old_content(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    server.fail("put_block", WriteFailed("two servers are gone"))
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"x" * MIB)
    wait_until(lambda: handle.error is not None, 5, "the failure is known")
    with pytest.raises(WriteFailed):
        write(fs, handle, MIB, b"more")
    for _ in range(2):
        with pytest.raises(WriteFailed):
            fs.files.flush(handle)
    fs.files.release(handle)
    assert server.committed(ino) == b"old"
    assert read(fs, ino) == b"old"
    assert fs.getattr(ino).size == 3
    assert server.calls["write_file"] == 1


@pytest.mark.parametrize("error", [WriteFailed("gone"), WriteRefused("gone")])
def test_a_failed_commit_leaves_the_old_content(
    fs: FileSystem, server: FakeServer, error: WriteFailed
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"new")
    other, _ = fs.files.open(ino, os.O_RDWR)
    server.fail("write_file", error)
    with pytest.raises(type(error)):
        fs.files.flush(handle)
    assert read(fs, ino) == b"old"
    with pytest.raises(type(error)):
        fs.files.flush(other)
    with pytest.raises(type(error)):
        fs.files.fsync(other)
    write(fs, other, 1, b"LD")
    close(fs, other)
    with pytest.raises(type(error)):
        close(fs, handle)
    assert server.committed(ino) == b"oLD"


def test_a_refused_write_commits_nothing_of_what_came_before(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"half of it")
    server.writable = False
    with pytest.raises(WriteRefused):
        write(fs, handle, 10, b"other half")
    server.writable = True
    with pytest.raises(WriteRefused):
        write(fs, handle, 20, b"third half")
    with pytest.raises(WriteRefused):
        fs.files.flush(handle)
    fs.files.release(handle)
    assert server.committed(ino) == b"old"


def test_a_log_goes_on_after_a_refused_write(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old,")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
    write(fs, handle, 4, b"waiting,")
    server.writable = False
    with pytest.raises(WriteRefused):
        write(fs, handle, 12, b"refused,")
    server.writable = True
    write(fs, handle, 12, b"new")
    close(fs, handle)
    assert server.committed(ino) == b"old,waiting,new"


def test_what_waits_outlives_a_refused_close_by_a_child(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old,")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 4, b"new")
    server.writable = False
    with pytest.raises(WriteRefused):
        fs.files.flush(handle)
    server.writable = True
    close(fs, handle)
    assert server.committed(ino) == b"old,new"


def test_a_close_by_a_child_does_not_use_up_an_error(fs: FileSystem, server: FakeServer) -> None:
    """As in `(echo a; true; echo b) > f` when the close of `true` fails: f must not be "b" behind a hole."""
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"a\n")
    server.fail("write_file", WriteFailed("gone"))
    with pytest.raises(WriteFailed):
        fs.files.flush(handle)
    with pytest.raises(WriteFailed):
        write(fs, handle, 2, b"b\n")
    with pytest.raises(WriteFailed):
        close(fs, handle)
    assert server.committed(ino) == b"old"


def test_a_new_file_whose_first_write_is_refused_gets_no_second_half(
    fs: FileSystem, server: FakeServer
) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    server.writable = False
    with pytest.raises(WriteRefused):
        write(fs, handle, 0, b"first half,")
    server.writable = True
    with pytest.raises(WriteRefused):
        write(fs, handle, 11, b"second half")
    with pytest.raises(WriteRefused):
        fs.files.flush(handle)
    assert server.committed(attributes.ino) == b""
    fs.files.release(handle)


def test_open_for_writing_and_create_are_refused(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    server.writable = False
    server.calls.clear()
    with pytest.raises(WriteRefused):
        fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    with pytest.raises(WriteRefused):
        fs.create(1, b"b", 0o644, 0, 0, os.O_WRONLY)
    assert set(server.calls) <= {"close"}, "nothing was made or changed"
    assert read(fs, ino) == b"old"


def test_a_dead_session_loses_only_what_was_let_go(fs: FileSystem, server: FakeServer) -> None:
    server.fail("write_file", SessionUnknown())
    ino = make(fs, b"small", b"still in memory")
    assert server.committed(ino) == b"still in memory"
    attributes, handle = fs.create(1, b"large", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x" * MIB)
    wait_until(lambda: server.calls["put_block"] == 1, 5, "a block is put")
    server.session = 2
    with pytest.raises(SessionUnknown):
        fs.files.flush(handle)
    fs.files.release(handle)
    assert server.committed(attributes.ino) == b""


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
    fs.set_xattr(ino, b"user.quorumfs.drop_caches", b"", 0)
    with pytest.raises(DigestMismatch):
        read(fs, ino)
    assert not lies


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
    monkeypatch.setattr(writeback, "MOST_EXTENTS_A_COMMIT", 10)
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    for index in range(35):
        write(fs, handle, index * 1000, bytes([index]))
    close(fs, handle)
    assert [len(commit.extents) for commit in server.commits] == [10, 10, 10, 5]
    content = server.committed(attributes.ino)
    assert [content[index * 1000] for index in range(35)] == list(range(35))


def test_times_set_while_writing_stand_after_close(fs: FileSystem, server: FakeServer) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"1234")
    fs.setattr(attributes.ino, AttributeChanges(mtime_ns=1_000_000_007))
    close(fs, handle)
    assert fs.getattr(attributes.ino).mtime_ns == 1_000_000_007


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
    fs.lookup(1, b"old", walker=7)
    server.rename(1, b"new", 1, b"old", 0)  # by another mount
    assert fs.lookup(1, b"old", walker=7).ino == old
    with pytest.raises(StaleFile):
        fs.open(old, os.O_RDONLY, walker=7)
    assert fs.lookup(1, b"old", walker=7).ino == new
    server.calls.clear()
    handle, _ = fs.open(new, os.O_RDONLY, walker=7)
    assert server.calls == Counter(open=1)
    fs.lookup(1, b"old", walker=7)
    close(fs, fs.open(new, os.O_RDONLY, walker=7)[0])
    assert server.calls == Counter(open=2), "the path is verified by the same call"
    close(fs, handle)


def test_dropped_caches_have_the_server_asked_again(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    fs.lookup(1, b"a")
    asked = server.calls["resolve"]
    fs.lookup(1, b"a")
    assert server.calls["resolve"] == asked
    fs.set_xattr(ino, b"user.quorumfs.drop_caches", b"", 0)
    fs.lookup(1, b"a")
    assert server.calls["resolve"] == asked + 1


def test_the_cache_answers_for_a_while_and_own_changes_at_once(fs: FileSystem, server: FakeServer) -> None:
    make(fs, b"a", b"1")
    server.calls.clear()
    for _ in range(5):
        assert fs.getattr(fs.lookup(1, b"a").ino).size == 1
    assert not server.calls
    fs.rename(1, b"a", 1, b"b")
    assert fs.lookup(1, b"b").size == 1
    fs.setattr(fs.lookup(1, b"b").ino, AttributeChanges(mode=0o100600))
    assert fs.lookup(1, b"b").mode == 0o100600


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


@pytest.mark.parametrize("seed", range(12))
def test_random_work_is_what_a_bytearray_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    monkeypatch.setattr(inodes, "MOST_CACHED_EXTENTS", 4)
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
        assert fs.getattr(ino).size == len(model)
        assert server.committed(ino) == committed
    close(fs, handle)
    assert server.committed(ino) == model
    assert read(fs, ino) == model
    fs.end()
    assert fs._writeback.budget.used == 0


def test_appends_go_to_the_end_that_another_mount_made(server: FakeServer, fs: FileSystem) -> None:
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
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
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
    write(fs, handle, 4, b"new.")
    server.fail(when, SessionUnknown())
    close(fs, handle)
    assert server.committed(ino) == b"old.new."


def test_an_append_that_is_made_durable_is_one_call(server: FakeServer, fs: FileSystem) -> None:
    ino = make(fs, b"a", b"old.")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_APPEND)
    fs.files.fsync(handle)
    before = server.calls.copy()
    for turn in range(5):
        write(fs, handle, 4 + turn, b"x")
        fs.files.fsync(handle)
    assert server.calls - before == Counter(write_file=5)
    close(fs, handle)


def test_what_a_failed_write_put_is_abandoned(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    kept = set(server.blocks)
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"x" * 3 * MIB)
    wait_until(lambda: len(server.blocks) > len(kept) + 1, 5, "blocks are put")
    server.fail("put_block", NoSpace("full"), NoSpace("full"))
    server.fail("write_file", NoSpace("full"))
    with pytest.raises(NoSpace):
        write(fs, handle, 3 * MIB, b"y" * 3 * MIB)
        fs.files.flush(handle)
    fs.files.release(handle)
    wait_until(lambda: set(server.blocks) == kept, 5, "only what is committed is left")
    assert server.committed(ino) == b"old"


def test_blocks_that_were_overwritten_before_their_commit_are_abandoned(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    for turn in range(3):
        write(fs, handle, 0, bytes([turn]) * MIB)
        wait_until(lambda: len(server.blocks) > turn + 1, 5, "a block is put")  # noqa: B023
    close(fs, handle)
    wait_until(lambda: len(server.abandoned) == 2, 5, "the first two are abandoned")
    assert server.committed(ino) == bytes([2]) * MIB


def test_a_write_with_all_servers_full_is_refused_at_the_call(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    server.full = True
    with pytest.raises(NoSpace):
        write(fs, handle, 0, b"new")
    with pytest.raises(NoSpace):
        fs.files.flush(handle)
    fs.files.release(handle)
    assert server.committed(ino) == b"old"
    make(fs, b"names still go", b"")
    fs.files.truncate_unopened(ino, 1)
    assert server.committed(ino) == b"o"


def test_the_blocks_of_a_commit_that_may_come_late_are_not_abandoned(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = make(fs, b"a", b"old")
    for error in (DeadlineExceeded("no answer"), WriteFailed("two servers are gone")):
        handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
        write(fs, handle, 0, b"x" * (2 * MIB + 5))
        server.fail("write_file", error)
        with pytest.raises(type(error)):
            close(fs, handle)
    fs._writeback.close()
    assert len(server.abandoned) == 3, "of the second failure only: two put before, one with the commit"
    assert server.committed(ino) == b"old"


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
    fs.set_xattr(ino, b"user.quorumfs.drop_caches", b"", 0)
    honest = server.open_and_read

    def lie(*args: Any) -> Opened:
        return honest(*args)._replace(part=BlockPart(5, b"", b"wrong"))

    monkeypatch.setattr(server, "open_and_read", lie)
    assert read(fs, ino) == b"right"
    assert server.calls["open_and_read"] == 1
    assert server.calls["read_block"] == 2


def make_neighbours(fs: FileSystem, count: int) -> list[int]:
    inos = [make(fs, b"%04d" % number, b"%04d" % number * 9) for number in range(count)]
    fs.set_xattr(1, b"user.quorumfs.drop_caches", b"", 0)
    fs.read_directory(fs.open_directory(1), restart=False)
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
    fs.set_xattr(1, b"user.quorumfs.drop_caches", b"", 0)
    go.set()
    fs._ahead.close()
    assert not fs._ahead._ready


def test_a_mount_that_is_alone_opens_what_was_fetched_ahead_without_a_call(
    fs: FileSystem, server: FakeServer
) -> None:
    fs._grant.extend(time.monotonic(), 60.0)
    inos = make_neighbours(fs, 100)
    fs.read_directory(fs.open_directory(1), restart=False)
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
    fs._grant.extend(time.monotonic(), 60.0)
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


def test_a_listing_spares_a_call_for_each_files_security_attributes(
    fs: FileSystem, server: FakeServer
) -> None:
    _, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    close(fs, handle)
    fs._names.forget()
    (entry,) = fs.read_directory(fs.open_directory(1), restart=False)
    server.calls.clear()
    for name, error in ((b"security.selinux", NotSupported), (b"security.capability", NoAttribute)):
        with pytest.raises(error):
            fs.get_xattr(entry.attributes.ino, name)
    assert not server.calls
    with pytest.raises(NoAttribute):
        fs.get_xattr(entry.attributes.ino, b"user.x")
    assert server.calls["get_xattr"] == 1


def test_a_new_file_whose_write_fails_is_taken_back_at_its_last_close(
    fs: FileSystem, server: FakeServer
) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x")
    server.fail("write_file", WriteFailed("no quorum"))
    with pytest.raises(WriteFailed):
        fs.files.flush(handle)
    assert fs.lookup(1, b"a").ino == attributes.ino
    fs.files.release(handle)
    with pytest.raises(NotFound):
        fs.lookup(1, b"a")


def test_a_new_file_whose_second_try_succeeds_stays(fs: FileSystem, server: FakeServer) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x")
    server.fail("write_file", WriteFailed("no quorum"))
    with pytest.raises(WriteFailed):
        fs.files.fsync(handle)
    write(fs, handle, 0, b"y")
    fs.files.flush(handle)
    fs.files.release(handle)
    assert server.calls["take_back"] == 0
    assert server.committed(attributes.ino) == b"y"
