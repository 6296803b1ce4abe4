"""Close-to-open between two real mounts: bytes, attributes, names, kept pages, and files without a name."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.detour import REQUEST, Proxy
from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.config import dumps
from wire.methods import BookkeepingMethods

LEASE_SECONDS = 3.0
MOUNTS, CONNECTIONS = Path("/proc/self/mountinfo"), Path("/sys/fs/fuse/connections")

Mounted = tuple[LocalCluster, Path, Path]


@pytest.fixture
def mounted(make_cluster: ClusterFactory, tmp_path: Path) -> Mounted:
    """A cluster with a short lease and two mounts."""
    cluster = make_cluster(**SMALL, lease_seconds=LEASE_SECONDS)
    cluster.start()
    places = tmp_path / "first", tmp_path / "second"
    for place in places:
        place.mkdir()
        cluster.mount(place)
    return cluster, *places


def test_attributes_at_the_next_open(mounted: Mounted) -> None:
    _, first, second = mounted
    (first / "a").write_text("one")
    for turn in range(10):
        writer, reader = (first, second) if turn % 2 else (second, first)
        (reader / "a").stat()
        with (writer / "a").open("a") as file:
            file.write("more")
        (writer / "a").chmod(0o600 + turn)
        os.utime(writer / "a", ns=(turn, 1_000_000_007 * turn))
        with (reader / "a").open() as file:
            status = os.fstat(file.fileno())
        assert (status.st_size, status.st_mode & 0o777) == (3 + 4 * (turn + 1), 0o600 + turn)
        assert status.st_mtime_ns == 1_000_000_007 * turn


def test_names_on_look_up_and_in_listings(mounted: Mounted) -> None:
    _, first, second = mounted
    (first / "d").mkdir()
    for turn in range(10):
        maker, looker = (first, second) if turn % 2 else (second, first)
        assert not (looker / "d" / f"{turn}").exists()
        (maker / "d" / f"{turn}").write_text("")
        assert (looker / "d" / f"{turn}").exists()
        assert f"{turn}" in os.listdir(looker / "d")  # noqa: PTH208
        (maker / "d" / f"{turn}").rename(maker / "d" / f"new-{turn}")
        assert (looker / "d" / f"new-{turn}").read_text() == ""
        (maker / "d" / f"new-{turn}").unlink()
        wait_until(lambda path=looker / "d": not os.listdir(path), 1.5, "the listing is empty")  # noqa: PTH208


def test_hard_links_are_never_stale_after_open(mounted: Mounted) -> None:
    _, first, second = mounted
    (first / "a").write_text("")
    (first / "b").hardlink_to(first / "a")
    for turn in range(20):
        writer, reader = (first, second) if turn % 2 else (second, first)
        content = f"{turn}" * (turn + 1)
        (writer / "ab"[turn // 2 % 2]).write_text(content)
        assert (reader / "a").read_text() == (reader / "b").read_text() == content
        assert (writer / "a").read_text() == (writer / "b").read_text() == content
        assert (reader / "a").stat().st_nlink == 2


@pytest.mark.parametrize("how", ["rmdir", "replaced", "rmdir elsewhere"])
def test_a_directory_that_is_open_and_removed(mounted: Mounted, how: str) -> None:
    _, first, second = mounted
    (first / "d").mkdir(mode=0o750)
    descriptor = os.open(first / "d", os.O_RDONLY)
    try:
        assert os.listdir(descriptor) == []  # noqa: PTH208
        if how == "replaced":
            (first / "other").mkdir()
            (first / "other").rename(first / "d")
        else:
            ((second if how == "rmdir elsewhere" else first) / "d").rmdir()
        wait_until(lambda: os.fstat(descriptor).st_nlink == 0, 5, "it has no name")
        assert stat.filemode(os.fstat(descriptor).st_mode) == "drwxr-x---"
        assert os.listdir(descriptor) == []  # noqa: PTH208
        os.fchmod(descriptor, 0o705)
        os.utime(descriptor, (3, 5))
        if os.geteuid() == 0:
            os.fchown(descriptor, 7, 8)
            assert (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid) == (7, 8)
        after = os.fstat(descriptor)
        assert stat.filemode(after.st_mode) == "drwx---r-x" and after.st_nlink == 0
        assert (after.st_atime, after.st_mtime) == (3, 5)
        assert os.listxattr(descriptor) == []
        with pytest.raises(OSError) as refused:
            os.getxattr(descriptor, "user.colour")
        assert refused.value.errno == errno.ENODATA
    finally:
        os.close(descriptor)


def test_a_file_replaced_under_a_reader_on_another_mount(mounted: Mounted) -> None:
    _, first, second = mounted
    (first / "a").write_text("old")
    with (second / "a").open() as opened:
        (first / "new").write_text("new")
        (first / "new").rename(first / "a")
        os.setxattr(second, "user.quorumfs.drop_caches", b"")
        assert opened.read() == "old"
        assert os.fstat(opened.fileno()).st_nlink == 0
        assert (second / "a").read_text() == "new"


def test_an_unchanged_file_is_read_from_the_kernels_pages(mounted: Mounted) -> None:
    cluster, first, second = mounted
    (first / "a").write_bytes(b"x" * 300_000)
    assert (second / "a").read_bytes() == b"x" * 300_000
    for server in ("data-1", "data-2", "data-3"):
        cluster.kill(server)
    # No vote is possible any more: what is read now comes from the kernel.
    assert (second / "a").read_bytes() == b"x" * 300_000
    cluster.start("data-1", "data-2", "data-3")
    wait_until(lambda: try_to_write(first / "a", b"y" * 300_000), 20, "the file can be written")
    assert (second / "a").read_bytes() == b"y" * 300_000


class CountingProxy(Proxy):
    """Counts the calls that it passes on, by method, and does something before it passes on some."""

    def __init__(self, upstream: str) -> None:
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[], object]] = {}
        super().__init__(upstream)

    def _looks_at_requests(self, swallowed: dict[int, int]) -> Callable[[list[Any]], bool]:
        def passes(message: list[Any]) -> bool:
            if message[0] == REQUEST and message[2] != "heartbeat":
                self.calls[message[2]] += 1
                if before := self.before.pop(message[2], None):
                    before()
            return True

        return passes


@contextmanager
def counted_mount(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, CountingProxy]]:
    """One more mount, whose calls are counted."""
    counted, settings = tmp_path / "counted", cluster.directory / "counted.toml"
    counted.mkdir()
    with CountingProxy(cluster.address("mediator")) as proxy:
        detoured = dataclasses.replace(cluster.config, mediator_listen=proxy.address)
        settings.write_text(dumps(detoured, cluster.directory))
        with monkeypatch.context() as patched:
            patched.setattr(cluster, "config_file", settings)
            name = cluster.mount(counted)
        yield counted, proxy
        cluster.unmount(name)


def test_a_second_read_of_an_unchanged_file_is_one_call(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, first, _ = mounted
    with counted_mount(cluster, tmp_path, monkeypatch) as (counted, proxy):
        (first / "d").mkdir()
        (first / "d" / "a").write_bytes(b"x" * 300_000)
        assert (counted / "d" / "a").read_bytes() == b"x" * 300_000
        assert proxy.calls["read_block"] >= 1
        wait_until(lambda: proxy.calls["close"] == 1, 5, "the first close is told")
        for _ in range(5):  # names and attributes hold for a second, which on a busy machine may be over
            proxy.calls.clear()
            for _ in range(2):
                assert (counted / "d" / "a").read_bytes() == b"x" * 300_000
            wait_until(lambda: proxy.calls["close"] >= 1, 5, "closes are told, in the background")
            if proxy.calls["resolve"] + proxy.calls["getattr"] == 0:
                break
        del proxy.calls["close"]
        assert proxy.calls["open"] + proxy.calls["open_and_read"] == proxy.calls.total() == 2


def test_neighbours_are_fetched_ahead_and_one_that_changes_meanwhile_is_read_anew(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, first, _ = mounted
    (first / "d").mkdir()
    for number in range(60):
        (first / "d" / f"{number:02d}").write_text(f"old {number}")
    with counted_mount(cluster, tmp_path, monkeypatch) as (counted, proxy):
        names = sorted(os.listdir(counted / "d"))  # noqa: PTH208
        for number, name in enumerate(names):
            if number == 20:  # it, and some that follow, are here already
                assert proxy.calls["read_small_files"] >= 2
                for changed in range(20, 30):
                    (first / "d" / f"{changed:02d}").write_text(f"newer {changed}")
            expected = "newer" if 20 <= number < 30 else "old"
            assert (counted / "d" / name).read_text() == f"{expected} {number}"
        assert proxy.calls["open"] + proxy.calls["open_and_read"] == 60
        assert proxy.calls["read_small_files"] <= 12


AS_NOBODY = 'cd "$0" && exec setpriv --reuid 65534 --regid 65534 --clear-groups bash -c "$1"'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_another_mount_makes_first_is_opened_by_who_may(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, first, _ = mounted
    (first / "d").mkdir()
    (first / "d").chmod(0o777)

    def make(mode: int) -> None:
        (first / "d" / f"{mode:o}").write_text("of root")
        (first / "d" / f"{mode:o}").chmod(mode)

    with counted_mount(cluster, tmp_path, monkeypatch) as (counted, proxy):
        for mode, said in ((0o600, "Permission denied"), (0o666, "")):
            proxy.before["create"] = partial(make, mode)
            command = ["bash", "-c", AS_NOBODY, str(counted / "d"), f"echo of nobody > {mode:o}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert proxy.calls["create"], "the name was not there when it was looked up"
            assert said in done.stderr and (done.returncode == 0) == (not said)
            assert (first / "d" / f"{mode:o}").read_text() == ("of root" if said else "of nobody\n")


MAPPER = """
import mmap, os, sys, time
path, how = sys.argv[1:]
file = os.open(path, os.O_RDWR)
view = mmap.mmap(file, 5000)
view[:5] = b"dirty"
os.stat(path)
print("mapped", flush=True)
sys.stdin.readline()
if how == "look":
    while os.stat(path).st_size == 5000:
        time.sleep(0.1)
else:
    os.truncate(path if how == "truncate by name" else file, 6000)
print(os.fstat(file).st_size, flush=True)
"""


@pytest.mark.parametrize(
    ("how", "size"), [("look", 9000), ("truncate by name", 6000), ("truncate by descriptor", 6000)]
)
def test_who_changed_a_mapped_file_that_grew_elsewhere_goes_on(mounted: Mounted, how: str, size: int) -> None:
    """Dropping a changed page waits for its write, and in a truncation the kernel holds that write back."""
    _, first, second = mounted
    (first / "a").write_bytes(b"o" * 5000)
    command = [sys.executable, "-c", MAPPER, str(first / "a"), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as mapper:
        assert mapper.stdin is not None and mapper.stdout is not None
        assert mapper.stdout.readline() == "mapped\n"
        with (second / "a").open("ab") as file:
            file.write(b"n" * 4000)
        mapper.stdin.write("\n")
        mapper.stdin.flush()
        ended, _, _ = select.select([mapper.stdout], [], [], 20)
        if not ended:
            abort(first)
        assert ended, "it waits for ever"
        assert mapper.stdout.readline() == f"{size}\n"
    content = b"dirty" + b"o" * 4995 + b"n" * (size - 5000)
    assert (first / "a").read_bytes() == (second / "a").read_bytes() == content


def abort(place: Path) -> None:
    """End a mount's connection to the kernel, which ends all waits."""
    mounts = map(str.split, MOUNTS.read_text().splitlines())
    (device,) = (fields[2] for fields in mounts if fields[4] == str(place))
    (CONNECTIONS / device.partition(":")[2] / "abort").write_text("1")


def test_one_of_many_makes_a_file_exclusively(mounted: Mounted) -> None:
    _, first, second = mounted
    places = (first, second) * 2

    def make(place: Path) -> list[bool]:
        return [try_to_make(place / f"{number}") for number in range(40)]

    with ThreadPoolExecutor(len(places)) as pool:
        won = list(pool.map(make, places))
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * 40


def try_to_make(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def try_to_write(path: Path, content: bytes) -> bool:
    try:
        path.write_bytes(content)
    except OSError:
        return False
    return True


def inodes(cluster: LocalCluster) -> int:
    client = BlockingClient([cluster.config.metaserver_listen])
    try:
        return int(client.call(5.0, BookkeepingMethods.counts)["inodes"])
    finally:
        client.close()


def test_an_unlinked_open_file_lives_until_its_last_close(mounted: Mounted) -> None:
    cluster, first, second = mounted
    before = inodes(cluster)
    (first / "a").write_text("kept")
    opened = os.open(second / "a", os.O_RDONLY)
    (first / "a").unlink()
    os.setxattr(second, "user.quorumfs.drop_caches", b"")
    assert os.pread(opened, 10, 0) == b"kept"
    assert inodes(cluster) == before + 1
    os.close(opened)
    wait_until(lambda: inodes(cluster) == before, 5, "the inode is gone")


def test_an_unlinked_open_file_ends_with_a_dead_mounts_session(mounted: Mounted) -> None:
    cluster, first, second = mounted
    before = inodes(cluster)
    (first / "a").write_text("kept")
    opened = os.open(second / "a", os.O_RDONLY)
    (first / "a").unlink()
    cluster.kill("mount-2")
    assert inodes(cluster) == before + 1
    wait_until(lambda: inodes(cluster) == before, 4 * LEASE_SECONDS, "the inode is gone")
    with pytest.raises(OSError):
        os.close(opened)


READER = """
import sys
path, turns = sys.argv[1], int(sys.argv[2])
for _ in range(turns):
    with open(path, "rb", buffering=0) as file:
        content = file.readall()
    if content.strip(b"x"):
        sys.exit(f"{len(content)} bytes, of them {content.count(0)} zeros")
"""


@pytest.mark.parametrize("kind", ["grows", "grows and shrinks"])
def test_no_zeros_behind_the_end_of_an_open_file(mounted: Mounted, kind: str) -> None:
    """Found by chaos: the kernel fills its last page with zeros, and a look-up told it a larger size."""
    _, first, second = mounted
    (second / "log").write_bytes(b"x" * 100)
    words = [sys.executable, "-c", READER, str(first / "log"), "150"]
    readers = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(3)]
    turn, size = 0, 100
    while any(reader.poll() is None for reader in readers):
        turn += 1
        if kind == "grows":
            with (second / "log").open("r+b") as file:
                file.seek(size)
                file.write(b"x" * 100)
            size += 100
        elif turn % 2:
            (second / "log").write_bytes(b"x" * (300_000 + turn))
        else:
            os.truncate(second / "log", 200_000 + 100 * turn)
    assert [reader.communicate()[1] for reader in readers] == [b""] * 3


def test_an_open_file_has_all_it_had_though_it_grows_again_before_the_first_read(mounted: Mounted) -> None:
    """The kernel ignores a size that it is told while pages are dropped: reads ended at an old one."""
    _, first, second = mounted
    for turn in range(3):
        here, there = first / f"log-{turn}", second / f"log-{turn}"
        there.write_bytes(b"at first.")
        with opened(here) as before:
            assert os.read(before, 1 << 20) == b"at first."
            append(there, b"closed.")
            with opened(here) as file:
                append(there, b"later.")
                os.setxattr(first, "user.quorumfs.drop_caches", b"")  # the kernel's next question is asked on
                assert os.read(file, 1 << 20).startswith(b"at first.closed.")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to be read, and do nothing else: open() of Python asks for its size."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def append(path: Path, record: bytes) -> None:
    with path.open("ab") as file:
        file.write(record)


FOLLOWER = """
import os, sys
content, file = b"", os.open(sys.argv[1], os.O_RDONLY)
while content != b"end":
    if sys.argv[2] == "opens":
        os.close(file)
        file = os.open(sys.argv[1], os.O_RDONLY)
    content = os.pread(file, 1 << 20, 0)
    if content != b"end" and content.strip(b"x"):
        sys.exit(f"{len(content)} bytes, of them {content.count(0)} zeros")
"""


def test_no_zeros_in_a_file_that_becomes_shorter_on_this_mount(mounted: Mounted) -> None:
    """The kernel fills up a page that is shorter at once, and knows the new end later."""
    path = mounted[1] / "log"
    path.touch()
    words = [sys.executable, "-c", FOLLOWER, str(path)]
    readers = [
        subprocess.Popen([*words, kind], stderr=subprocess.PIPE) for kind in ("keeps", "opens", "opens")
    ]
    for _ in range(200):
        with path.open("r+b", buffering=0) as file:
            file.write(b"x" * 4000)
        os.truncate(path, 0)
    path.write_bytes(b"end")
    assert [reader.communicate(timeout=60)[1] for reader in readers] == [b""] * 3


LENGTHENED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)  # Python's own pread would call again after EINTR
file, buffer = os.open(sys.argv[1], os.O_RDONLY), ctypes.create_string_buffer(4096)
print("ready", flush=True)
while os.fstat(file).st_size < 4000:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if libc.pread(file, buffer, 4096, 0) < 0:
        sys.exit(f"errno {ctypes.get_errno()}")
"""


def test_a_read_of_a_file_that_becomes_longer_on_this_mount_is_not_interrupted(mounted: Mounted) -> None:
    path = mounted[1] / "longer"
    path.write_bytes(b"x" * 100)
    words = [sys.executable, "-c", LENGTHENED, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"ready\n"
        with path.open("r+b") as file:
            for size in range(101, 4001):
                os.ftruncate(file.fileno(), size)
        assert reader.communicate(timeout=60)[1] == b""
