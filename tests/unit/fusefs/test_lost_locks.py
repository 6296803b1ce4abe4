"""What a mount that held locks does with its other files when its session dies, over an in-memory server.

A program may write one file under a lock of another, a lock file: nobody can tell which.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from fusefs.locks import ATTEMPTS
from fusefs.patience import Patience
from fusefs.remote import RemoteNamespace
from fusefs.session import Session
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, make, read, write
from wire.config import Deadlines
from wire.errors import LocksLost, NotFound, QuorumfsError, SessionUnknown, Unavailable
from wire.messages import Attributes, FileLock, LockGrant, Opened, SessionInfo

OWNER = 7


@pytest.fixture
def lock_file(fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A file that programs have open for the sake of its lock."""
    ino = make(fs, b"lock", b"")
    monkeypatch.setattr(server, "set_lock", lambda _: LockGrant(1, server.getattr(ino)), raising=False)
    monkeypatch.setattr(server, "unlock", lambda _: 1, raising=False)
    monkeypatch.setattr(server, "confirm_session", lambda: None, raising=False)
    return fs.files.open(ino, os.O_RDWR)[0]


def of(handle: Handle) -> FileLock:
    return FileLock(handle.inode.ino, True, OWNER, 0, 2**63 - 1, True, 1)


@pytest.mark.parametrize("held", [True, False])
def test_what_was_written_before_the_loss_is_dropped_if_any_lock_was_held(
    fs: FileSystem, server: FakeServer, lock_file: Handle, held: bool
) -> None:
    ino = make(fs, b"a", b"1234")
    fs.locks.set(lock_file, of(lock_file))
    if not held:
        fs.locks.unset(lock_file, of(lock_file))
    handle, _ = fs.files.open(ino, os.O_RDWR)
    write(fs, handle, 0, b"new")
    assert fs.locks.lose() == held
    if held:
        with pytest.raises(LocksLost):
            write(fs, handle, 0, b"newer")
        with pytest.raises(LocksLost):
            fs.files.flush(handle)
        with pytest.raises(LocksLost):
            fs.files.fsync(handle)
    close(fs, handle)  # it has been told, or has nothing to be told
    assert server.committed(ino) == (b"1234" if held else b"new4")
    again, _ = fs.files.open(ino, os.O_RDWR)
    write(fs, again, 0, b"late")
    close(fs, again)
    assert server.committed(ino) == b"late"


@pytest.mark.parametrize("change", ["write", "truncate", "allocate"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_open_for_writing_fails_although_nothing_waits(
    fs: FileSystem,
    server: FakeServer,
    lock_file: Handle,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    when: str,
) -> None:
    """Its program may have read, under the lock, what it is going to write anew."""
    ino = make(fs, b"a", b"1234")
    fs.locks.set(lock_file, of(lock_file))
    handle, _ = fs.files.open(ino, os.O_RDWR)
    reader, _ = fs.files.open(ino, os.O_RDONLY)
    if when == "before":
        fs.locks.lose()
    else:
        monkeypatch.setattr(server, "require_writable", fs.locks.lose)
    with pytest.raises(LocksLost):
        if change == "write":
            write(fs, handle, 0, b"new")
        elif change == "truncate":
            fs.files.truncate(handle, 2)
        else:
            fs.files.allocate(handle, 0, 0, 100)
    with pytest.raises(LocksLost):
        close(fs, handle)
    assert server.committed(ino) == b"1234"
    assert bytes(fs.files.read(reader, 0, 9)) == b"1234", "who only reads goes on"
    close(fs, reader)


def test_a_commit_is_not_made_again_under_the_next_session(
    fs: FileSystem, server: FakeServer, lock_file: Handle
) -> None:
    ino = make(fs, b"a", b"1234")
    fs.locks.set(lock_file, of(lock_file))
    handle, _ = fs.files.open(ino, os.O_RDWR)
    write(fs, handle, 0, b"new")
    server.fail("write_file", SessionUnknown("expired"))
    server.hooks["write_file"] = lambda: fs.locks.lose() and None
    with pytest.raises(LocksLost):
        close(fs, handle)
    assert server.committed(ino) == b"1234"


def test_a_session_that_dies_while_a_lock_is_given_up_takes_it_along(
    fs: FileSystem, server: FakeServer, lock_file: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(fs, b"a", b"1234")
    fs.locks.set(lock_file, of(lock_file))
    handle, _ = fs.files.open(ino, os.O_RDWR)
    write(fs, handle, 0, b"new")

    def unlock(_: FileLock) -> int:
        fs.locks.lose()
        raise SessionUnknown("expired")

    monkeypatch.setattr(server, "unlock", unlock, raising=False)
    fs.locks.unset(lock_file, of(lock_file))
    with pytest.raises(LocksLost):
        close(fs, handle)
    assert server.committed(ino) == b"1234"
    assert not fs.locks.lose(), "that is over"


@pytest.mark.parametrize("how", ["by age", "when it is opened", "at its close", "by fsync", "under way"])
def test_a_file_that_no_server_knows_is_not_made_any_more(
    fs: FileSystem, server: FakeServer, lock_file: Handle, how: str
) -> None:
    fs.locks.set(lock_file, of(lock_file))
    server.alone = True
    fs._grant.extend(0.0, 1e9)
    fs.attributes.get(1)
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"new")
    attributes, handle = fs.create(1, b"new", 0o644, 0, 0, os.O_WRONLY)
    assert handle.inode.birth is not None
    if how == "under way":
        server.fail("write_file", SessionUnknown("expired"))
        server.hooks["write_file"] = lambda: fs.locks.lose() and None
    else:
        fs.locks.lose()
    if how == "by age":
        server.alone = False
        fs._births.settle_old()
    elif how != "at its close":
        work: dict[str, Callable[[], Any]] = {
            "when it is opened": lambda: fs.open(attributes.ino, os.O_WRONLY),
            "by fsync": lambda: fs.files.fsync(handle),
            "under way": lambda: fs._births.settle(attributes.ino),
        }
        for _ in range(1 + (how == "by fsync")):
            with pytest.raises(QuorumfsError):
                work[how]()
    server.hooks.clear()
    fs.files.release(handle)
    assert not server.resolve(1, [b"new"])


class Expired:
    """Stands for a client, and the servers behind it, for which the mount's first session is gone."""

    def __init__(self) -> None:
        self.sessions = 0
        self.done: list[str] = []

    def call(self, _seconds: float, method: Any, *params: Any) -> Any:
        if method.__name__ == "open_session":
            self.sessions += 1
            return SessionInfo(self.sessions, 30_000, 5)
        if method.__name__ == "reclaim":
            return None
        number = params[0] if isinstance(params[0], int) else params[0].session
        if number == 1:
            raise SessionUnknown("expired")
        self.done.append(method.__name__)
        attributes = Attributes(2, 0o100644, 1, 0, 0, 4, 0, 0, 0, 0, 0, 1)
        return Opened(attributes, None, None) if method.__name__ == "open" else attributes  # type: ignore[arg-type]


@pytest.mark.parametrize("in_time", [True, False])
def test_a_lock_is_asked_for_again_in_new_sessions_only_while_there_is_time(
    fs: FileSystem, server: FakeServer, lock_file: Handle, monkeypatch: pytest.MonkeyPatch, in_time: bool
) -> None:
    """As while the metadata is put back several times, and with it the server forgets its sessions."""
    asked: list[FileLock] = []

    def forget(lock: FileLock) -> LockGrant:
        asked.append(lock)
        raise SessionUnknown("it expired")

    monkeypatch.setattr(server, "set_lock", forget, raising=False)
    fs.patience.begin(60.0 if in_time else 0.0)
    with pytest.raises(Unavailable):
        fs.locks.set(lock_file, of(lock_file))
    fs.patience.done()
    assert len(asked) == (ATTEMPTS if in_time else 1)


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("rename", lambda namespace: namespace.rename(1, b"a.new", 1, b"a", 0)),
        ("open", lambda namespace: namespace.open(2, True, 2, [])),
    ],
)
def test_no_change_that_met_the_end_of_a_session_with_locks_is_made(
    lost: bool, name: str, work: Callable[[RemoteNamespace], Any]
) -> None:
    """A rename into place is how many programs write; an open with O_TRUNC begins by dropping all."""
    client, patience = Expired(), Patience()
    session = Session(client, Deadlines(), "a test", patience)  # type: ignore[arg-type]
    session.begin(1.0)
    session.lose_locks = lambda: lost
    namespace = RemoteNamespace(client, session, Deadlines(), patience)  # type: ignore[arg-type]
    if lost:
        with pytest.raises(LocksLost):
            work(namespace)
        assert client.done == [name] * (name == "open"), "an open alone changes nothing"
        client.done.clear()
    work(namespace)
    assert client.done == [name], "what is asked for from now on is"


def test_a_file_is_as_it_was_after_it_is_opened_anew(fs: FileSystem, lock_file: Handle) -> None:
    ino = make(fs, b"a", b"1234")
    fs.locks.set(lock_file, of(lock_file))
    handle, _ = fs.files.open(ino, os.O_RDWR | os.O_TRUNC)
    write(fs, handle, 0, b"new")
    fs.locks.lose()
    assert read(fs, ino) == b"1234"
    with pytest.raises(LocksLost):
        close(fs, handle)
