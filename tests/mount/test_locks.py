"""fcntl and flock across two real mounts: who gets a lock, who waits, and what frees it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import ClusterFactory
from tests.mount import locker
from tests.mount.conftest import SMALL, two_mounts
from tests.mount.test_opened_ahead import metadata
from tests.support import wait_until
from tools.cluster import LocalCluster

LEASE_SECONDS = 3.0
OFD_SETLK = 37
"""F_OFD_SETLK, which the fcntl module of Python 3.11 lacks."""
KINDS = ["fcntl", "flock"]


class Program:
    """A process that locks a file on one mount, as it is told (see tests/mount/locker.py)."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, locker.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.do(f"open {path}") == "ok"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Awaited:
    """The answer to a command that waits."""

    def __init__(self, program: Program, command: str) -> None:
        self.answers: list[str] = []
        program.tell(command)
        self._thread = threading.Thread(target=lambda: self.answers.append(program.answer()), daemon=True)
        self._thread.start()

    def still_waits(self, seconds: float = 0.3) -> bool:
        self._thread.join(seconds)
        return not self.answers

    def answer(self, seconds: float = 10) -> str:
        return wait_until(lambda: self.answers, seconds, "the lock was granted or refused")[0]


Start = Callable[[int, str], Program]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one cluster, for tests that break nothing."""
    base = tmp_path_factory.mktemp("locks")
    with two_mounts(base) as places:
        yield places


@pytest.fixture
def start(mounted: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start a program on one of the two mounts, with a file of the test's own open."""
    name = request.node.name.replace("/", "_")
    with ExitStack() as stack:
        yield lambda mount, suffix="": stack.enter_context(Program(mounted[mount] / (name + suffix)))


@pytest.fixture
def breakable(make_cluster: ClusterFactory, tmp_path: Path) -> tuple[LocalCluster, Path, Path]:
    """A cluster with a short lease and two mounts."""
    cluster = make_cluster(**SMALL, lease_seconds=LEASE_SECONDS)
    cluster.start()
    places = tmp_path / "first", tmp_path / "second"
    for place in places:
        place.mkdir()
        cluster.mount(place)
    return cluster, *places


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other_mount", [0, 1])
def test_locks_exclude(start: Any, kind: str, other_mount: int) -> None:
    one, two = start(0), start(other_mount)
    assert one.do(f"lock {kind} shared") == two.do(f"lock {kind} shared") == "ok"
    assert one.do(f"lock {kind} exclusive") == "EAGAIN"
    assert two.do(f"unlock {kind}") == "ok"
    assert one.do(f"lock {kind} exclusive") == "ok"
    assert two.do(f"lock {kind} shared") == "EAGAIN"
    assert one.do(f"lock {kind} shared") == "ok"
    assert two.do(f"lock {kind} shared") == "ok"


def test_the_two_kinds_do_not_meet(start: Any) -> None:
    assert start(0).do("lock fcntl exclusive") == "ok"
    assert start(1).do("lock flock exclusive") == "ok"


def test_ranges(start: Any) -> None:
    one, two = start(0), start(1)
    assert one.do("lock fcntl exclusive 0 100") == "ok"
    assert two.do("lock fcntl exclusive 100 0") == "ok"
    assert two.do("lock fcntl shared 50 10") == "EAGAIN"
    assert one.do("unlock fcntl 40 30") == "ok"
    assert two.do("lock fcntl exclusive 40 30") == "ok"
    assert two.do("lock fcntl exclusive 39 1") == "EAGAIN"
    assert one.do("lock fcntl exclusive 70 31") == "EAGAIN"
    assert one.do("lock fcntl shared 70 30") == "ok"
    assert two.do("lock fcntl shared 70 30") == "ok"


def test_who_holds_it(start: Any) -> None:
    one, same, other = start(0), start(0), start(1)
    assert one.do("test exclusive 0 0") == "free"
    assert one.do("lock fcntl exclusive 10 20") == "ok"
    assert one.do("test exclusive 0 0") == "free"
    assert same.do("test shared 0 0") == f"exclusive 10 20 {one.process.pid}"
    assert other.do("test shared 15 1") == "exclusive 10 20 0"
    assert other.do("test exclusive 30 0") == "free"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other_mount", [0, 1])
def test_a_waiter_gets_it(start: Any, kind: str, other_mount: int) -> None:
    one, two = start(0), start(other_mount)
    assert one.do(f"lock {kind} exclusive") == "ok"
    waiting = Awaited(two, f"lock {kind} exclusive wait")
    assert waiting.still_waits(2.5)
    assert one.do(f"unlock {kind}") == "ok"
    begun = time.monotonic()
    assert waiting.answer() == "ok"
    assert time.monotonic() - begun < 1
    assert one.do(f"lock {kind} shared") == "EAGAIN"


def test_shared_flocks_that_both_want_more(start: Any) -> None:
    one, two = start(0), start(1)
    assert one.do("lock flock shared") == two.do("lock flock shared") == "ok"
    waiting = Awaited(one, "lock flock exclusive wait")
    assert waiting.still_waits()
    assert two.do("lock flock exclusive") in ("ok", "EAGAIN")
    assert two.do("unlock flock") == "ok"
    assert waiting.answer() == "ok"


def test_a_deadlock_is_refused(start: Any) -> None:
    one, two = start(0), start(1)
    assert one.do("lock fcntl exclusive 0 1") == two.do("lock fcntl exclusive 1 1") == "ok"
    waiting = Awaited(one, "lock fcntl exclusive 1 1 wait")
    assert waiting.still_waits()
    assert two.do("lock fcntl exclusive 0 1 wait") == "EDEADLK"
    assert two.do("unlock fcntl") == "ok"
    assert waiting.answer() == "ok"


def test_who_was_interrupted_makes_no_deadlock(start: Any) -> None:
    one, two = start(0), start(1)
    assert one.do("lock fcntl exclusive 0 1") == two.do("lock fcntl exclusive 1 1") == "ok"
    interrupted = Awaited(one, "lock fcntl exclusive 1 1 wait")
    assert interrupted.still_waits()
    one.process.send_signal(signal.SIGUSR1)
    assert interrupted.answer() == "EINTR"
    waiting = Awaited(two, "lock fcntl exclusive 0 1 wait")
    assert waiting.still_waits()
    assert one.do("unlock fcntl") == "ok"
    assert waiting.answer() == "ok"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_end_of_a_file_or_a_process_frees(start: Any, kind: str, how: str) -> None:
    one, two = start(0), start(1)
    assert one.do(f"lock {kind} exclusive") == "ok"
    waiting = Awaited(two, f"lock {kind} exclusive wait")
    assert waiting.still_waits()
    if how == "close":
        assert one.do("close") == "ok"
    else:
        one.kill()
    assert waiting.answer() == "ok"


def test_closing_any_descriptor_frees_record_locks(start: Any, mounted: tuple[Path, Path]) -> None:
    one, two = start(0), start(1)
    path = next(mounted[0].glob("test_closing_any_descriptor*"))
    assert one.do("lock fcntl exclusive") == one.do(f"open {path}") == one.do("close") == "ok"
    assert two.do("lock fcntl exclusive") == "ok"
    assert one.do("lock flock exclusive") == one.do(f"open {path}") == one.do("close") == "ok"
    assert two.do("lock flock exclusive") == "EAGAIN"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_waiter_is_interrupted(start: Any, kind: str, number: signal.Signals) -> None:
    one, two, three = start(0), start(1), start(1)
    assert one.do(f"lock {kind} exclusive") == "ok"
    waiting = Awaited(two, f"lock {kind} exclusive wait")
    assert waiting.still_waits()
    begun = time.monotonic()
    two.process.send_signal(number)
    assert waiting.answer(5) == ("EINTR" if number == signal.SIGUSR1 else "")
    if number == signal.SIGKILL:
        assert two.process.wait(5) == -number
    assert time.monotonic() - begun < 1
    assert one.do(f"unlock {kind}") == "ok"
    assert three.do(f"lock {kind} exclusive") == "ok"


def test_many_waiters_leave_the_mount_usable(start: Any, mounted: tuple[Path, Path]) -> None:
    one = start(0)
    assert one.do("lock flock exclusive") == "ok"
    programs = [start(0) for _ in range(36)]
    waiting = [Awaited(program, "lock flock exclusive wait") for program in programs]
    assert all(each.still_waits(0.05) for each in waiting)
    (mounted[0] / "other").write_text("works")
    assert (mounted[0] / "other").read_text() == "works"
    assert one.do("unlock flock") == "ok"
    for _ in programs:
        wait_until(lambda: any(each.answers for each in waiting), 10, "one of them got it")
        got = next(index for index, each in enumerate(waiting) if each.answers)
        assert waiting.pop(got).answers == ["ok"]
        assert programs[got].do("unlock flock") == "ok"
        programs.pop(got)


@pytest.mark.parametrize("kind", KINDS)
def test_who_gets_a_lock_sees_what_was_written_under_it(start: Any, kind: str) -> None:
    one, two = start(0), start(1)
    for turn in range(20):
        writer, reader = (one, two) if turn % 2 else (two, one)
        assert writer.do(f"lock {kind} exclusive wait") == "ok"
        assert writer.do(f"write turn-{turn:02}") == writer.do(f"unlock {kind}") == "ok"
        assert reader.do(f"lock {kind} shared wait") == "ok"
        assert reader.do("read 100") == f"turn-{turn:02}"
        assert reader.do(f"unlock {kind}") == "ok"


def test_counting_under_a_lock(start: Any, mounted: tuple[Path, Path]) -> None:
    script = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for _ in range(25):
    fcntl.lockf(file, fcntl.LOCK_EX)
    value = int(os.pread(file, 100, 0) or b"0")
    os.pwrite(file, b"%d" % (value + 1), 0)
    fcntl.lockf(file, fcntl.LOCK_UN)
"""
    counters = [subprocess.Popen([sys.executable, "-c", script, place / "counter"]) for place in mounted * 2]
    for counter in counters:
        assert counter.wait(timeout=60) == 0
    assert (mounted[0] / "counter").read_text() == (mounted[1] / "counter").read_text() == "100"


def test_locks_of_an_open_file_description(start: Any, mounted: tuple[Path, Path]) -> None:
    other = start(1)
    (path,) = mounted[0].glob("test_locks_of_an_open_file*")
    file = os.open(path, os.O_RDWR)
    fcntl.fcntl(file, OFD_SETLK, locker.record(fcntl.F_WRLCK, 0, 0))
    assert other.do("lock fcntl shared") == "EAGAIN"
    copy = os.dup(file)
    os.close(file)
    assert other.do("lock fcntl shared") == "EAGAIN"
    os.close(copy)
    wait_until(lambda: other.do("lock fcntl shared") == "ok", 5, "the last close frees it")


def test_sqlite_from_two_mounts(mounted: tuple[Path, Path]) -> None:
    script = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60)
database.execute("CREATE TABLE IF NOT EXISTS work (who, number)")
for number in range(15):
    database.execute("INSERT INTO work VALUES (?, ?)", (sys.argv[2], number))
    database.commit()
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", script, place / "database", f"{number}"])
        for number, place in enumerate(mounted * 2)
    ]
    for worker in workers:
        assert worker.wait(timeout=120) == 0
    for place in mounted:
        database = sqlite3.connect(place / "database")
        assert database.execute("SELECT count(DISTINCT who || ':' || number) FROM work").fetchone() == (60,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_mount_frees_with_its_lease(breakable: tuple[LocalCluster, Path, Path], kind: str) -> None:
    cluster, first, second = breakable
    with Program(first / "a") as one, Program(second / "a") as two:
        assert one.do(f"lock {kind} exclusive") == "ok"
        cluster.kill("mount-1")
        waiting = Awaited(two, f"lock {kind} exclusive wait")
        assert waiting.still_waits(LEASE_SECONDS / 3)
        assert waiting.answer(3 * LEASE_SECONDS) == "ok"


@pytest.mark.parametrize("kind", KINDS)
def test_who_dies_while_servers_are_away_frees_when_they_are_back(
    make_cluster: ClusterFactory, tmp_path: Path, kind: str
) -> None:
    """Its lock stayed with the mount's session: nobody on another mount got it while the mount lived."""
    cluster = make_cluster(**SMALL, unavailable="wait")
    cluster.start()
    places = tmp_path / "first", tmp_path / "second"
    for place in places:
        place.mkdir()
        cluster.mount(place)
    with Program(places[0] / "file") as holder, Program(places[1] / "file") as other:
        assert holder.do(f"lock {kind} exclusive") == "ok"
        cluster.kill("mediator")
        holder.kill()
        cluster.start("mediator")
        wait_until(lambda: other.do(f"lock {kind} exclusive") == "ok", 20.0, "the lock is free")


@pytest.mark.parametrize("kind", KINDS)
def test_locks_outlive_the_metaserver(breakable: tuple[LocalCluster, Path, Path], kind: str) -> None:
    cluster, first, second = breakable
    with Program(first / "a") as one, Program(second / "a") as two, Program(second / "a") as three:
        assert one.do(f"lock {kind} exclusive") == "ok"
        waiting = Awaited(two, f"lock {kind} exclusive wait")
        for _ in range(2):
            cluster.kill("metaserver")
            cluster.start("metaserver")
            assert three.do(f"lock {kind} shared") == "EAGAIN"
        assert waiting.still_waits()
        assert one.do(f"unlock {kind}") == "ok"
        assert waiting.answer() == "ok"
        assert one.do(f"lock {kind} exclusive") == "EAGAIN"


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_that_was_cut_off_lost_its_locks(
    breakable: tuple[LocalCluster, Path, Path], kind: str
) -> None:
    cluster, first, second = breakable
    with Program(first / "a") as one, Program(second / "a") as two:
        assert one.do("write old") == one.do("fsync") == one.do(f"lock {kind} exclusive") == "ok"
        assert one.do("write lost") == "ok"
        cluster.pause("mount-1")
        assert two.do(f"lock {kind} exclusive wait") == "ok"
        assert two.do("write new") == two.do("fsync") == "ok"
        cluster.resume("mount-1")
        assert one.do("read 10") == "EIO"
        assert one.do("write bad") == "EIO"
        assert one.do("fsync") == "EIO"
        assert one.do(f"lock {kind} exclusive") == "EIO"
        one.do("close")
        assert one.do(f"open {first / 'a'}") == "ok"
        assert one.do("read 10") == "new"
        assert one.do(f"lock {kind} exclusive") == "EAGAIN"
        assert two.do(f"unlock {kind}") == "ok"
        assert one.do(f"lock {kind} exclusive") == one.do("write good") == one.do("close") == "ok"
    assert (second / "a").read_text() == "good"


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_that_was_cut_off_undoes_nothing_by_what_it_wrote_beside_its_lock(
    breakable: tuple[LocalCluster, Path, Path], kind: str
) -> None:
    """Programs that have a lock file write others under it: both writes of these were told as done."""
    cluster, first, second = breakable
    (second / "data").write_text("1234")
    with ExitStack() as stack:
        one, two = (stack.enter_context(Program(place / "lock")) for place in (first, second))
        here, idle, there = (
            stack.enter_context(Program(path)) for path in (first / "data", first / "data", second / "data")
        )
        assert one.do(f"lock {kind} exclusive") == idle.do("read 10").replace("1234", "ok") == "ok"
        assert here.do("write lost") == "ok"
        cluster.pause("mount-1")
        assert two.do(f"lock {kind} exclusive wait") == "ok"
        assert there.do("write new") == there.do("fsync") == "ok"
        cluster.resume("mount-1")
        assert here.do("close") == "EIO"
        assert idle.do("write late") == "EIO", "what it read may be old"
        assert (first / "data").read_text() == (second / "data").read_text() == "new4"
        assert two.do(f"unlock {kind}") == "ok"
        assert idle.do("fsync") == "EIO"
        assert idle.do("write good") == idle.do("close") == "ok", "it has been told"
    assert (second / "data").read_text() == "good"


@pytest.mark.parametrize("kind", KINDS)
def test_a_mount_that_was_cut_off_without_locks_goes_on(
    breakable: tuple[LocalCluster, Path, Path], kind: str
) -> None:
    cluster, first, second = breakable
    with Program(first / "a") as one, Program(second / "a") as two, Program(first / "b") as other:
        assert one.do(f"lock {kind} exclusive") == one.do(f"unlock {kind}") == two.do("write new") == "ok"
        assert other.do("write kept") == "ok"
        cluster.pause("mount-1")
        assert two.do("close") == "ok"
        wait_until(
            lambda: len(metadata(cluster)["sessions"]) == 1, 10 * LEASE_SECONDS, "the lease has passed"
        )
        cluster.resume("mount-1")
        assert other.do("fsync") == other.do("close") == "ok"
    assert (second / "b").read_text() == "kept"


def test_pages_mapped_under_a_lost_lock_are_written_through_no_other_descriptor(
    breakable: tuple[LocalCluster, Path, Path],
) -> None:
    """The kernel writes the pages of a map through any descriptor that has one, as a rule the newest."""
    cluster, first, second = breakable
    (first / "a").write_bytes(b"old-" * 1024)
    one, newest = (os.open(first / "a", os.O_RDWR) for _ in range(2))
    with Program(second / "a") as two, mmap.mmap(one, 4096) as mapped, mmap.mmap(newest, 4096):
        fcntl.flock(one, fcntl.LOCK_EX)
        mapped[:4] = b"lost"
        cluster.pause("mount-1")
        assert two.do("lock flock exclusive wait") == two.do("write new") == two.do("fsync") == "ok"
        cluster.resume("mount-1")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            fcntl.flock(one, fcntl.LOCK_EX)
    for file in (one, newest):
        with suppress(OSError):
            os.close(file)
    assert (first / "a").read_bytes()[:8] == (second / "a").read_bytes()[:8] == b"new-old-"
