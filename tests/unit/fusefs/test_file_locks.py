"""What is followed of a lock whose outcome is not known, over an in-memory server."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from fusefs.patience import Patience
from tests.unit.fusefs.fakes import FakeServer, file_system
from tests.unit.fusefs.work import close, make, write
from wire.errors import (
    DeadlineExceeded,
    InternalError,
    Interrupted,
    LocksLost,
    NoLocks,
    QuorumfsError,
    StaleEpoch,
    WouldBlock,
)
from wire.locks import LAST
from wire.messages import Attributes, FileLock, LockGrant

OWNER = 7


def test_a_new_session_may_be_of_a_server_that_counts_its_starts_anew(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(fs, b"a", b"1234")
    monkeypatch.setattr(server, "set_lock", lambda _: LockGrant(3, server.getattr(ino)), raising=False)
    fs.locks.reclaim(1000)
    fs.locks.lose()
    fs.locks.reclaim(3)
    handle, _ = fs.files.open(ino, os.O_RDWR)
    fs.locks.set(handle, FileLock(ino, False, OWNER, 0, 9, True, 1))
    assert len(fs.locks.reclaim(3)) == 1


def test_a_call_for_an_earlier_start_of_the_server_is_made_for_the_newer_one(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, refusals = make(fs, b"a", b"1234"), [StaleEpoch("restarted"), None, StaleEpoch("restarted"), None]

    def answer(_: FileLock) -> LockGrant:
        if (error := refusals.pop(0)) is not None:
            raise error
        return LockGrant(3, server.getattr(ino))

    monkeypatch.setattr(server, "set_lock", answer, raising=False)
    monkeypatch.setattr(server, "unlock", lambda lock: answer(lock).epoch, raising=False)
    handle, _ = fs.files.open(ino, os.O_RDWR)
    wanted = FileLock(ino, False, OWNER, 0, 9, True, 1)
    fs.locks.set(handle, wanted)
    assert len(fs.locks.reclaim(3)) == 1
    fs.locks.unset(handle, wanted)
    assert not refusals and not fs.locks.reclaim(3)


@pytest.fixture
def locked(fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A file of four bytes, open and locked."""
    ino = make(fs, b"a", b"1234")
    monkeypatch.setattr(server, "set_lock", lambda _: LockGrant(1, server.getattr(ino)), raising=False)
    monkeypatch.setattr(server, "confirm_session", lambda: None, raising=False)
    handle, _ = fs.files.open(ino, os.O_RDWR)
    fs.locks.set(handle, FileLock(ino, False, OWNER, 0, 9, True, 1))
    return handle


@pytest.mark.parametrize("size", [4, 40], ids=["bytes", "beyond the end"])
def test_a_read_during_which_locks_are_lost_fails(
    fs: FileSystem, locked: Handle, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """It would have the old bytes where its process has written others: to SQLite, a malformed database."""
    fs.files.write(locked, 0, b"new " * 10)
    plan = fs.files._contents._plan

    def late_plan(*args: Any) -> Any:
        fs.locks.lose()  # the session is found dead while a server is waited for
        return plan(*args)

    monkeypatch.setattr(fs.files._contents, "_plan", late_plan)
    with pytest.raises(LocksLost):
        fs.files.read(locked, size - 4, 4)


@pytest.mark.parametrize("change", ["write", "truncate", "allocate"])
def test_a_change_that_waited_while_locks_were_lost_is_not_taken(
    fs: FileSystem, server: FakeServer, locked: Handle, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """It would be committed later, over what somebody else has written under the same lock."""
    monkeypatch.setattr(server, "require_writable", fs.locks.lose)
    with pytest.raises(LocksLost):
        if change == "write":
            fs.files.write(locked, 0, b"new")
        elif change == "truncate":
            fs.files.truncate(locked, 2)
        else:
            fs.files.allocate(locked, 0, 0, 100)
    with locked.inode.lock:
        assert not locked.inode.is_changed()
    assert locked.inode.view().size == 4


@pytest.mark.parametrize(
    ("error", "given_up"),
    [
        (DeadlineExceeded("no answer"), True),
        (Interrupted("a signal came"), True),
        (QuorumfsError("the answer to set_lock does not fit"), True),
        (InternalError("a defect of the server"), True),
        (WouldBlock("held"), False),
    ],
    ids=["no answer", "a signal", "another answer", "a defect", "refused"],
)
def test_a_lock_that_may_have_been_granted_is_given_up_at_the_close(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch, error: QuorumfsError, given_up: bool
) -> None:
    unlocked: list[FileLock] = []

    def set_lock(_: FileLock) -> LockGrant:
        raise error

    monkeypatch.setattr(server, "set_lock", set_lock, raising=False)
    monkeypatch.setattr(server, "unlock", lambda lock: unlocked.append(lock) or 1, raising=False)
    ino = make(fs, b"a", b"1234")
    handle, _ = fs.files.open(ino, os.O_RDWR)
    wanted = FileLock(ino, False, OWNER, 0, 9, True, 1)
    with pytest.raises(type(error)):
        fs.locks.set(handle, wanted)
    assert not fs.locks.reclaim(1), "nobody is told that it is held"
    fs.locks.closing(handle, OWNER)
    assert [lock.last for lock in unlocked] == [LAST] * given_up
    close(fs, handle)


def test_a_range_that_cannot_be_unlocked_is_locked_still(
    fs: FileSystem, server: FakeServer, locked: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a restart: two locks in the place of one would be too many."""

    def refuse(_: FileLock) -> int:
        raise NoLocks("too many")

    monkeypatch.setattr(server, "unlock", refuse, raising=False)
    before = fs.locks.reclaim(1)
    with pytest.raises(NoLocks):
        fs.locks.unset(locked, before[0]._replace(start=4, last=4))
    assert fs.locks.reclaim(1) == before != []


@pytest.mark.parametrize("locked_again", [False, True])
def test_what_could_not_be_given_up_at_the_close_is_given_up_later(
    fs: FileSystem,
    server: FakeServer,
    locked: Handle,
    monkeypatch: pytest.MonkeyPatch,
    locked_again: bool,
) -> None:
    """Unless its owner has come again: what he has locked since is his."""
    errors: list[QuorumfsError] = [DeadlineExceeded("no answer"), DeadlineExceeded("no answer")]
    unlocked: list[FileLock] = []

    def unlock(lock: FileLock) -> int:
        if errors:
            raise errors.pop()
        unlocked.append(lock)
        return 1

    monkeypatch.setattr(server, "unlock", unlock, raising=False)
    ino = locked.inode.ino
    fs.locks.closing(locked, OWNER)
    close(fs, locked)
    fs.locks.give_up_left()
    assert not unlocked, "the servers are still away"
    if locked_again:
        again, _ = fs.files.open(ino, os.O_RDWR)
        fs.locks.set(again, FileLock(ino, False, OWNER, 0, 9, True, 1))
    fs.locks.give_up_left()
    assert [(lock.start, lock.last) for lock in unlocked] == ([] if locked_again else [(0, LAST)])
    assert len(fs.locks.reclaim(1)) == locked_again
    fs.locks.give_up_left()
    assert len(unlocked) == (not locked_again), "it is done with"


def test_who_locks_again_waits_for_what_is_being_given_up_although_the_session_died(
    fs: FileSystem, server: FakeServer, locked: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the unlock, which goes to the new session, is followed after the grant: seed 554436."""
    begun, may_end, asked = threading.Event(), threading.Event(), list[str]()
    ino = locked.inode.ino

    def unlock(lock: FileLock) -> int:
        asked.append("unlock")
        if len(asked) == 1:
            raise DeadlineExceeded("no answer")
        begun.set()
        assert may_end.wait(10)
        return 1

    def set_lock(lock: FileLock) -> LockGrant:
        asked.append("set_lock")
        return LockGrant(1, server.getattr(ino))

    monkeypatch.setattr(server, "unlock", unlock, raising=False)
    monkeypatch.setattr(server, "set_lock", set_lock, raising=False)
    monkeypatch.setattr(fs.locks._giving_up, "_look", may_end.set)
    fs.locks.closing(locked, OWNER)
    close(fs, locked)
    chores = threading.Thread(target=fs.locks.give_up_left)
    chores.start()
    assert begun.wait(10)
    fs.locks.lose()
    again, _ = fs.files.open(ino, os.O_RDWR)
    fs.locks.set(again, FileLock(ino, False, OWNER, 0, 9, True, 1))
    may_end.set()
    chores.join(10)
    assert asked[-1] == "set_lock"
    assert len(fs.locks.reclaim(1)) == 1


@pytest.mark.parametrize("how", ["unlocked", "closed"])
def test_a_lock_is_not_given_up_before_what_was_written_under_it_is_committed(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A program that is killed while its commit waits for servers, as with `unavailable = "wait"`."""
    patience, may_commit, unlocked = Patience("wait"), threading.Event(), []
    fs = file_system(server, patience=patience)
    ino, write_file = make(fs, b"a", b"1234"), server.write_file

    def commit_late(*args: Any) -> Attributes:
        assert may_commit.wait(10)
        return write_file(*args)

    monkeypatch.setattr(server, "set_lock", lambda _: LockGrant(3, server.getattr(ino)), raising=False)
    monkeypatch.setattr(
        server, "unlock", lambda _: unlocked.append(server.committed(ino)) or 3, raising=False
    )
    monkeypatch.setattr(server, "confirm_session", lambda: None, raising=False)
    monkeypatch.setattr("fusefs.patience.SLOW_SECONDS", 0.01)
    handle, _ = fs.files.open(ino, os.O_RDWR)
    wanted = FileLock(ino, False, OWNER, 0, LAST, True, 1)
    fs.locks.set(handle, wanted)
    write(fs, handle, 0, b"56")
    monkeypatch.setattr(server, "write_file", commit_late)
    with patience.asked(lambda: True):
        if how == "closed":
            fs.locks.closing(handle, OWNER)
        else:
            with pytest.raises(Interrupted):
                fs.locks.unset(handle, wanted)
    assert not unlocked
    may_commit.set()
    if how == "closed":
        fs.locks.give_up_left()
    else:
        fs.locks.unset(handle, wanted)
    assert unlocked == [b"5634"]
    close(fs, handle)
    fs.end()
