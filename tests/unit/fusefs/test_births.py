"""Files that their first commit makes, over an in-memory server: which calls make them, and which do not."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from fusefs.filesystem import FileSystem
from fusefs.handles import Handle
from tests.support import wait_until
from tests.unit.fusefs.fakes import FakeServer
from tests.unit.fusefs.work import close, write
from wire.errors import (
    AlreadyExists,
    InvalidArgument,
    NoSpace,
    NotAlone,
    NotFound,
    SessionUnknown,
    StaleFile,
    WriteFailed,
    WriteRefused,
)
from wire.messages import AttributeChanges, Attributes, Birth, Commit


@pytest.fixture
def server() -> FakeServer:
    made = FakeServer()
    made.alone = True
    return made


def create(fs: FileSystem, name: bytes = b"a", flags: int = os.O_WRONLY) -> Handle:
    """Create a file as the kernel has it done: it looks the name up first."""
    fs.attributes.get(1)
    with pytest.raises(NotFound):
        fs.names.lookup(1, name)
    return fs.create(1, name, 0o640, 7, 8, flags)[1]


def exists(server: FakeServer, name: bytes = b"a") -> bool:
    return bool(server.resolve(1, [name]))


def test_a_small_file_is_one_call(fs: FileSystem, server: FakeServer) -> None:
    create(fs, b"first")
    server.calls.clear()
    handle = create(fs)
    assert not exists(server)
    write(fs, handle, 0, b"1234")
    close(fs, handle)
    assert server.calls - Counter(resolve=2) == Counter(write_file=1)
    (made,) = server.resolve(1, [b"a"])
    assert made.ino == handle.inode.ino
    assert server.committed(made.ino) == b"1234"
    assert fs.names.lookup(1, b"a").size == 4
    assert fs.attributes.get(made.ino).mode == stat.S_IFREG | 0o640


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDONLY, os.O_RDWR | os.O_EXCL])
def test_an_empty_file_is_there_after_close(fs: FileSystem, server: FakeServer, flags: int) -> None:
    close(fs, create(fs, flags=flags))
    assert exists(server)
    assert server.births[0][:5] == (1, b"a", stat.S_IFREG | 0o640, 7, 8)


CALLS: dict[str, Callable[[FileSystem, int], object]] = {
    "list": lambda fs, _: fs.directories.read(fs.directories.open(1), restart=True),
    "link": lambda fs, ino: fs.link(ino, 1, b"b"),
    "unlink": lambda fs, _: fs.unlink(1, b"a"),
    "rename": lambda fs, _: fs.rename(1, b"a", 1, b"b"),
    "mkdir": lambda fs, _: fs.make(1, b"b", stat.S_IFDIR | 0o755, 0, 0),
    "open": lambda fs, ino: fs.files.release(fs.open(ino, os.O_RDONLY)[0]),
    "truncate": lambda fs, ino: fs.files.truncate_unopened(ino, 4),
    "fsync of the directory": lambda fs, _: fs.directories.sync(),
    "resolve": lambda fs, _: fs.names.resolve(b"/a", fresh=True),
    "attributes of the directory": lambda fs, _: (fs.attributes.get(1), fs.names.lookup(1, b"a")),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_needs_the_file_has_it_made_first(fs: FileSystem, server: FakeServer, what: str) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    before = len(server.births)
    CALLS[what](fs, handle.inode.ino)
    assert len(server.births) == before + (what != "attributes of the directory")
    close(fs, handle)
    assert server.committed(handle.inode.ino) == b"1234"
    assert len(server.births) == 1


TIMES = AttributeChanges(atime_ns=11_000, mtime_ns=22_000)


def test_its_attributes_are_set_without_a_call(fs: FileSystem, server: FakeServer) -> None:
    """As by tar -x and cp -p: the bytes, then times, owner and mode."""
    handle = create(fs)
    ino = handle.inode.ino
    write(fs, handle, 0, b"1234")
    server.calls.clear()
    created = fs.attributes.get(ino)
    for changes in (TIMES, AttributeChanges(uid=70, gid=80), AttributeChanges(mode=0o4755)):
        set_now = fs.attributes.set(ino, changes)
    assert set_now == fs.attributes.get(ino) and set_now.ctime_ns >= created.ctime_ns
    assert not server.calls and not exists(server)
    close(fs, handle)
    assert server.calls["write_file"] == 1 and not server.calls["setattr"]
    assert server.births[0] == Birth(1, b"a", stat.S_IFREG | 0o4755, 70, 80)
    made = server.getattr(ino)
    assert (made.atime_ns, made.mtime_ns) == (11_000, 22_000)
    for known in (set_now, fs.attributes.get(ino)):
        assert (known.mode, known.uid, known.gid) == (stat.S_IFREG | 0o4755, 70, 80)
        assert (known.atime_ns, known.mtime_ns, known.size) == (11_000, 22_000, 4)


def test_what_is_written_after_its_times_were_set_is_newer(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    fs.attributes.set(handle.inode.ino, TIMES)
    write(fs, handle, 0, b"1234")
    close(fs, handle)
    made = server.getattr(handle.inode.ino)
    assert made.atime_ns == 11_000 and made.mtime_ns > 22_000


def test_an_empty_one_has_the_times_that_were_set(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    fs.attributes.set(handle.inode.ino, TIMES)
    fs.link(handle.inode.ino, 1, b"b")
    made = server.getattr(handle.inode.ino)
    assert (made.atime_ns, made.mtime_ns) == (11_000, 22_000)
    close(fs, handle)


def test_a_new_owner_takes_set_id_bits_off(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    fs.attributes.set(handle.inode.ino, AttributeChanges(mode=0o6711))
    assert fs.attributes.set(handle.inode.ino, AttributeChanges(uid=9)).mode == stat.S_IFREG | 0o711
    close(fs, handle)
    assert server.births[0].mode == stat.S_IFREG | 0o711


def test_attributes_that_are_none_are_refused(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    with pytest.raises(InvalidArgument):
        fs.attributes.set(handle.inode.ino, AttributeChanges(uid=2**32 - 1))
    close(fs, handle)
    assert server.births[0].uid == 7


def test_where_others_may_come_its_attributes_are_set_by_calls(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    server.alone = False
    fs.attributes.set(handle.inode.ino, AttributeChanges(mode=0o600))
    assert server.calls["setattr"] == 1 and len(server.births) == 1
    close(fs, handle)
    assert server.getattr(handle.inode.ino).mode == stat.S_IFREG | 0o600


@pytest.mark.parametrize("what", ["close", "link", "attributes of the directory"])
def test_it_stays_as_old_as_its_program_was_told(fs: FileSystem, server: FakeServer, what: str) -> None:
    handle = create(fs)
    told_ns = fs.attributes.get(handle.inode.ino).mtime_ns
    if what in CALLS:
        CALLS[what](fs, handle.inode.ino)
    close(fs, handle)
    assert exists(server)
    assert server.getattr(handle.inode.ino).mtime_ns == told_ns


def test_a_name_that_waits_is_found_by_this_mount(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    fs.xattrs.set(1, b"user.quorumfs.drop_caches", b"", 0)
    server.calls.clear()
    assert fs.names.lookup(1, b"a").size == 4
    assert fs.attributes.get(handle.inode.ino).size == 4
    assert not server.calls
    assert bytes(fs.files.read(handle, 0, 9)) == b"1234"
    close(fs, handle)


def test_fsync_makes_it_and_makes_it_durable(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    fs.files.fsync(handle)
    assert server.committed(handle.inode.ino) == b"1234"
    assert server.commits[-1].durable
    close(fs, handle)


def test_age_makes_it(fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = create(fs)
    fs._births.settle_old()
    assert not exists(server)
    monkeypatch.setattr("fusefs.births.MOST_SECONDS", 0.0)
    fs._births.settle_old()
    assert exists(server)
    close(fs, handle)


def test_when_others_may_come_all_are_made_and_none_is_kept(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    server.alone = False
    fs._births.settle_old()
    assert exists(server)
    create(fs, b"b")
    assert server.calls["create"] == 1
    close(fs, handle)


def test_a_refused_first_write_leaves_no_file_at_all(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    server.fail("write_file", WriteFailed("two servers are gone"))
    with pytest.raises(WriteFailed):
        close(fs, handle)
    assert not exists(server)
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"a")
    assert server.calls["take_back"] == 0


def test_a_program_may_try_again_after_fsync_told_it(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    server.fail("write_file", WriteRefused("fewer than Qw"))
    with pytest.raises(WriteRefused):
        fs.files.fsync(handle)
    write(fs, handle, 0, b"5678")
    close(fs, handle)
    assert server.committed(handle.inode.ino) == b"5678"


@pytest.mark.parametrize("error", [NotAlone("others came"), AlreadyExists("taken")])
def test_a_name_that_others_took_meanwhile_is_theirs(
    fs: FileSystem, server: FakeServer, error: NotAlone | AlreadyExists
) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    server.fail("write_file", error)
    with pytest.raises(type(error)):
        close(fs, handle)
    assert not exists(server)


ELSEWHERE: dict[str, Callable[[FileSystem], object]] = {
    "unlink": lambda fs: fs.unlink(1, b"other"),
    "mkdir": lambda fs: fs.make(1, b"new", stat.S_IFDIR | 0o755, 0, 0),
    "rename": lambda fs: fs.rename(1, b"other", 1, b"new"),
    "list": lambda fs: fs.directories.read(fs.directories.open(1), restart=True),
    "attributes of the directory": lambda fs: (fs._forget(), fs.attributes.get(1)),
}


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY])
@pytest.mark.parametrize("what", ELSEWHERE)
def test_a_file_that_cannot_be_made_holds_up_only_its_own_program(
    fs: FileSystem, server: FakeServer, what: str, access: int
) -> None:
    close(fs, create(fs, b"other"))
    handle = create(fs, flags=access)
    server.fail("write_file", NotAlone("others came"))
    ELSEWHERE[what](fs)
    assert not any(server.failures.values())
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"a")
    with pytest.raises(NotAlone):
        close(fs, handle)
    assert not exists(server)


def test_a_full_metadata_server_lets_other_files_be_removed(fs: FileSystem, server: FakeServer) -> None:
    close(fs, create(fs, b"other"))
    handle = create(fs)
    full = NoSpace("no room for rows")
    server.fail("write_file", full)
    fs.unlink(1, b"other")
    assert not exists(server, b"other")
    server.fail("write_file", full, full)
    with pytest.raises(NoSpace):
        fs.unlink(1, b"a")
    server.fail("write_file", full)
    with pytest.raises(NoSpace):
        fs.directories.sync()
    write(fs, handle, 0, b"1234")
    close(fs, handle)
    assert server.committed(handle.inode.ino) == b"1234"


def test_a_session_that_ends_meanwhile_fails_no_other_call(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    server.fail("write_file", SessionUnknown("a new one was begun"))
    fs.make(1, b"new", stat.S_IFDIR | 0o755, 0, 0)
    assert exists(server)
    close(fs, handle)


@pytest.mark.parametrize("method", ["write_file", "answer write_file"])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("resent", [False, True])
def test_it_is_made_once_over_the_end_of_a_session(
    fs: FileSystem, server: FakeServer, method: str, flags: int, resent: bool
) -> None:
    handle = create(fs, flags=flags)
    write(fs, handle, 0, b"1234")
    ended = SessionUnknown("a new one was begun")
    ended.resent = resent
    server.fail(method, ended)
    close(fs, handle)
    assert server.committed(handle.inode.ino) == b"1234"
    assert len(server.births) == 1


def test_what_others_wrote_since_it_was_made_is_not_undone(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    ended, write_file = SessionUnknown("the answer was lost with the session"), server.write_file
    ended.resent = True

    def make_and_lose_the_answer(ino: int, commit: Commit, payload: Sequence[bytes], birth: Birth) -> None:
        monkeypatch.undo()
        write_file(ino, commit, payload, birth)
        server.replace(ino, b"by others")
        raise ended

    monkeypatch.setattr(server, "write_file", make_and_lose_the_answer)
    with pytest.raises(SessionUnknown):
        fs.files.flush(handle)
    assert server.committed(handle.inode.ino) == b"by others"
    fs.files.release(handle)


def test_an_unknown_outcome_is_not_made_a_second_time(fs: FileSystem, server: FakeServer) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    lost = StaleFile("the answer was lost")
    lost.resent = True
    server.fail("answer write_file", lost)
    with pytest.raises(StaleFile):
        fs.files.fsync(handle)
    assert exists(server)
    server.unlink(1, b"a")
    write(fs, handle, 0, b"5678")
    close(fs, handle)
    assert not exists(server), "who removed it must not see it again"


def test_a_set_group_id_directory_gives_its_group_away_at_the_server(
    fs: FileSystem, server: FakeServer
) -> None:
    server.setattr(1, AttributeChanges(mode=stat.S_IFDIR | 0o2775))
    close(fs, create(fs))
    assert server.calls["create"] == 1
    assert not server.births


def test_a_file_that_is_made_while_its_last_close_gives_it_up_is_taken_back(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = create(fs)
    write(fs, handle, 0, b"1234")
    server.fail("write_file", WriteFailed("two servers are gone"))
    with pytest.raises(WriteFailed):
        fs.files.flush(handle)
    is_making, may_go_on, write_file = threading.Event(), threading.Event(), server.write_file

    def make_slowly(ino: int, commit: Commit, payload: Sequence[bytes], birth: Birth) -> Attributes:
        is_making.set()
        assert may_go_on.wait(10)
        return write_file(ino, commit, payload, birth)

    monkeypatch.setattr(server, "write_file", make_slowly)
    with ThreadPoolExecutor() as threads:
        made = threads.submit(fs._births.settle)
        assert is_making.wait(10)
        released = threads.submit(fs.files.release, handle)
        wait_until(lambda: not handle.inode.handles, 5, "the last close has begun")
        may_go_on.set()
        made.result(10)
        released.result(10)
    assert not exists(server)
    with pytest.raises(NotFound):
        fs.names.lookup(1, b"a")


def test_nobody_who_needs_no_number_waits_for_numbers(
    fs: FileSystem, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusefs.births.NUMBERS", 1)
    handle = create(fs)
    is_asked, may_answer = threading.Event(), threading.Event()

    def reserve_slowly() -> None:
        is_asked.set()
        assert may_answer.wait(10)

    server.hooks["reserve_inodes"] = reserve_slowly
    with ThreadPoolExecutor() as threads:
        second = threads.submit(create, fs, b"b")
        assert is_asked.wait(10)
        found = threads.submit(fs.names.lookup, 1, b"a")
        done, _ = wait([found], 5)
        may_answer.set()
        assert done, "a name that is here was told"
        assert found.result().ino == handle.inode.ino
        close(fs, second.result(10))
    close(fs, handle)
    assert len({birth.name for birth in server.births}) == 2
