"""What is followed of a lock whose outcome is not known, over an in-memory server."""

from __future__ import annotations

import os

import pytest

from fusefs.filesystem import FileSystem
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make
from wire.errors import DeadlineExceeded, Interrupted, QuorumfsError, WouldBlock
from wire.locks import LAST
from wire.messages import FileLock, LockGrant

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


@pytest.mark.parametrize(
    ("error", "given_up"),
    [
        (DeadlineExceeded("no answer"), True),
        (Interrupted("a signal came"), True),
        (WouldBlock("held"), False),
    ],
    ids=["no answer", "a signal", "refused"],
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
