"""What a failed or refused write undoes, what it leaves waiting, and who is told."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from fusefs.inodes import Inode
from fusefs.writeback import MOST_UNUSED_UPLOADS
from tests.support import wait_until
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make, read, write
from wire.digest import BLOCK_BYTES
from wire.errors import (
    DeadlineExceeded,
    Interrupted,
    NoSpace,
    NotFound,
    SessionUnknown,
    WriteFailed,
    WriteRefused,
)

MIB = BLOCK_BYTES


def write_refused(fs: FileSystem, server: FakeServer, handle: Handle, offset: int, data: bytes) -> None:
    """Write at a moment at which too few servers are up."""
    server.writable = False
    with pytest.raises(WriteRefused):
        write(fs, handle, offset, data)
    server.writable = True


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
    assert fs.attributes.get(ino).size == 3
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
    write_refused(fs, server, handle, 10, b"other half")
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
    write_refused(fs, server, handle, 12, b"refused,")
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
    write_refused(fs, server, handle, 0, b"first half,")
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
    _, handle = fs.create(1, b"large", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x" * MIB)
    wait_until(lambda: server.calls["put_block"] == 1, 5, "a block is put")
    server.session = 2
    with pytest.raises(SessionUnknown):
        fs.files.flush(handle)
    fs.files.release(handle)
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"large")


def test_what_a_failed_write_put_is_abandoned(fs: FileSystem, server: FakeServer) -> None:
    ino = make(fs, b"a", b"old")
    kept = set(server.blocks)
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"x" * 3 * MIB)
    wait_until(lambda: len(server.blocks) > len(kept) + 1, 5, "blocks are put")
    server.fail("put_block", NoSpace("full"))
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


def most_blocks(fs: FileSystem, server: FakeServer, handle: Handle, places: int) -> int:
    """Overwrite a file's first blocks 128 times, each once the one before is put; tell how many were kept."""
    most = 0
    for turn in range(2 * MOST_UNUSED_UPLOADS):
        put = server.calls["put_block"]
        write(fs, handle, turn % places * MIB, bytes([turn]) * MIB)
        wait_until(lambda: server.calls["put_block"] > put, 5, "the block is put")  # noqa: B023
        most = max(most, len(server.blocks))
    return most


def test_a_file_that_is_overwritten_on_and_on_takes_no_more_room_for_it(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    commits, before = server.calls["write_file"], set(server.blocks)
    assert most_blocks(fs, server, handle, 3) < MOST_UNUSED_UPLOADS + 10
    assert server.calls["write_file"] == commits
    close(fs, handle)
    wait_until(lambda: len(server.blocks.keys() - before) == 3, 5, "all that was overwritten is abandoned")
    assert server.committed(ino) == b"".join(bytes([turn]) * MIB for turn in (126, 127, 125))


def test_what_is_overwritten_and_deleted_while_it_is_read_is_read_anew(
    fs: FileSystem, server: FakeServer
) -> None:
    handle, _ = fs.files.open(make(fs, b"a", b"old"), os.O_RDWR)
    write(fs, handle, 0, b"x" * MIB)
    wait_until(lambda: server.calls["put_block"] == 1, 5, "the block is put")
    wait_until(lambda: handle.inode.changes.map.find(0, 1)[0].source.data is None, 5, "its bytes are let go")

    def overwrite() -> None:
        server.hooks.clear()
        most_blocks(fs, server, handle, 1)
        wait_until(lambda: bool(server.abandoned), 5, "what was overwritten is deleted")

    server.hooks["read_block"] = overwrite
    assert bytes(fs.files.read(handle, 0, 5)) == bytes([2 * MOST_UNUSED_UPLOADS - 1]) * 5
    assert not server.hooks, "it was overwritten in the midst of the read"
    close(fs, handle)


def test_what_a_file_needed_before_a_commit_is_no_measure_after_it(
    fs: FileSystem, server: FakeServer
) -> None:
    handle, _ = fs.files.open(make(fs, b"a", b"old"), os.O_WRONLY)
    for place in range(2 * MOST_UNUSED_UPLOADS):
        write(fs, handle, place * MIB, b"x" * MIB)
    fs.files.fsync(handle)
    committed = len(server.blocks)
    assert most_blocks(fs, server, handle, 1) < committed + MOST_UNUSED_UPLOADS + 10
    close(fs, handle)


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


def test_a_new_file_whose_write_fails_is_taken_back_at_its_last_close(
    fs: FileSystem, server: FakeServer
) -> None:
    attributes, handle = fs.create(1, b"a", 0o644, 0, 0, os.O_WRONLY)
    write(fs, handle, 0, b"x")
    server.fail("write_file", WriteFailed("no quorum"))
    with pytest.raises(WriteFailed):
        fs.files.flush(handle)
    assert fs.names.lookup(1, b"a").ino == attributes.ino
    fs.files.release(handle)
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"a")


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


@pytest.mark.parametrize("how", ["truncate", "allocate"])
def test_a_refused_change_of_the_size_commits_nothing_of_what_came_before(
    fs: FileSystem, server: FakeServer, how: str
) -> None:
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY | os.O_TRUNC)
    write(fs, handle, 0, b"the rest is a hole")
    server.writable = False
    with pytest.raises(WriteRefused):
        fs.files.truncate(handle, 100) if how == "truncate" else fs.files.allocate(handle, 0, 0, 100)
    server.writable = True
    with pytest.raises(WriteRefused):
        close(fs, handle)
    assert server.committed(ino) == b"old"


def test_a_refused_truncate_by_name_is_not_carried_out_by_another_close(
    fs: FileSystem, server: FakeServer
) -> None:
    ino = make(fs, b"a", b"old")
    other, _ = fs.files.open(ino, os.O_WRONLY)
    server.hooks["open"] = lambda: setattr(server, "writable", False)
    with pytest.raises(WriteRefused):
        fs.files.truncate_unopened(ino, 1)
    server.writable = True
    close(fs, other)
    assert server.committed(ino) == b"old"


def test_an_interrupted_fsync_does_not_use_up_an_error(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `unavailable = "wait"`: the commit goes on, and may fail before its fsync has ended."""
    ino = make(fs, b"a", b"old")
    handle, _ = fs.files.open(ino, os.O_WRONLY)
    write(fs, handle, 0, b"new")
    commit = fs._writeback.commit

    def fail_and_be_interrupted(inode: Inode, durable: bool, thread: int | None = None) -> bool:
        server.fail("write_file", WriteFailed("gone"))
        with pytest.raises(WriteFailed):
            commit(inode, durable, thread)
        raise Interrupted("by a signal")

    with monkeypatch.context() as patch:
        patch.setattr(fs._writeback, "commit", fail_and_be_interrupted)
        with pytest.raises(Interrupted):
            fs.files.fsync(handle)
    with pytest.raises(WriteFailed):
        fs.files.fsync(handle)
    close(fs, handle)
    assert server.committed(ino) == b"old"


@pytest.mark.parametrize("failing", ["put", "commit"])
def test_who_reads_while_a_write_fails_gets_the_old_content(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    ino = make(fs, b"a", b"x" * 2 * MIB)
    writer, _ = fs.files.open(ino, os.O_WRONLY)
    reader, _ = fs.files.open(ino, os.O_RDONLY)
    failing_now, may_fail, reading, has_failed = (threading.Event() for _ in range(4))

    def fail(*_: object) -> None:
        failing_now.set()
        assert may_fail.wait(10)
        raise WriteFailed("gone")

    def read_slowly() -> None:
        reading.set()
        assert has_failed.wait(10)

    monkeypatch.setattr(server, "put_block" if failing == "put" else "write_file", fail)
    server.hooks["read_block"] = read_slowly
    write(fs, writer, MIB, b"y" * (MIB if failing == "put" else 9))
    with ThreadPoolExecutor() as threads:
        flushed = threads.submit(fs.files.flush, writer)
        assert failing_now.wait(10)
        found = threads.submit(fs.files.read, reader, 0, 2 * MIB)
        assert reading.wait(10)
        may_fail.set()
        assert isinstance(flushed.exception(10), WriteFailed)
        has_failed.set()
        assert bytes(found.result(10)) == b"x" * 2 * MIB
    for handle in (reader, writer):
        fs.files.release(handle)
