"""The mount outlives its servers: all killed and restarted in several orders under open files, or gone."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import run_command, wait_until
from tools.health import await_writable
from wire.config import Deadlines

DEADLINES = Deadlines(
    metadata_seconds=2.0, read_seconds=2.0, write_seconds=3.0, vote_seconds=1.0, silence_seconds=3.0
)
CALL_SECONDS = DEADLINES.metadata_seconds + DEADLINES.write_seconds + 2.0
"""A system call may need two calls of the servers: the kernel asks for attributes before it writes."""
BACK_SECONDS = 20
RIGHT = (errno.EIO, errno.EROFS, errno.ETIMEDOUT)
WIDTH = 8

DATA = ("data-1", "data-2", "data-3")
ORDERS = {
    "outwards in": ("mediator", "metaserver", *DATA),
    "inwards out": (*DATA, "metaserver", "mediator"),
    "mixed": ("data-2", "mediator", "data-1", "metaserver", "data-3"),
}


class Record:
    """An open file with one number in it, which is written anew and read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR)
        self.acknowledged = self.tried = 0

    def write(self) -> bool:
        """Write the next number and sync it; tell whether that succeeded. It fails in time, as it should."""
        self.tried += 1
        done = in_time(lambda: os.pwrite(self.file, b"%0*d" % (WIDTH, self.tried), 0))
        synced = in_time(lambda: os.fsync(self.file))
        if done and synced:
            self.acknowledged = self.tried
        return done and synced

    def read(self) -> bool:
        """Tell whether the number can be read; what was acknowledged must not be gone."""
        os.setxattr(self.file, "user.quorumfs.drop_caches", b"")
        found: list[bytes] = []
        if not in_time(lambda: found.append(os.pread(self.file, WIDTH + 1, 0))):
            return False
        assert len(found[0]) == WIDTH
        assert self.acknowledged <= int(found[0]) <= self.tried
        return True


def in_time(call: Callable[[], object]) -> bool:
    """Tell whether a system call succeeds; if it fails, then with the right errno and in time."""
    begun = time.monotonic()
    try:
        call()
    except OSError as error:
        assert error.errno in RIGHT
        return False
    finally:
        assert time.monotonic() - begun < CALL_SECONDS
    return True


def names(place: Path) -> list[str]:
    return [entry.name for entry in place.iterdir()]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, id=name, marks=[pytest.mark.long] if number else [])
        for number, (name, order) in enumerate(ORDERS.items())
    ],
)
def test_open_files_go_on_when_everything_was_killed_and_restarted(
    make_cluster: ClusterFactory, mountpoint: Path, order: Sequence[str]
) -> None:
    cluster = make_cluster(**SMALL, deadlines=DEADLINES)
    cluster.start()
    cluster.mount(mountpoint)
    (mountpoint / "open").write_bytes(b"0" * WIDTH)
    record = Record(mountpoint / "open")
    assert record.write() and record.read()
    for name in order:
        cluster.kill(name)
    assert not record.read()
    assert not record.write()
    for name in order:
        cluster.start(name)
    wait_until(record.read, BACK_SECONDS, "the open file is read")
    wait_until(record.write, BACK_SECONDS, "the open file is written")
    assert record.read()
    os.close(record.file)
    assert int(record.path.read_bytes()) == record.acknowledged == record.tried


def test_a_log_that_is_never_synced_goes_on(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    """It is refused what comes while writes are impossible, and loses nothing else.

    The servers that the test starts close what they inherit: a close whose outcome the log never sees.
    """
    cluster = make_cluster(**SMALL, deadlines=DEADLINES)
    cluster.start()
    cluster.mount(mountpoint)
    path = mountpoint / "log"
    path.write_bytes(b"first\n")
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    cluster.kill("data-1")
    lines = [b"first\n"]

    def write_line() -> bool:
        line = b"%d\n" % len(lines)
        taken = in_time(lambda: os.write(log, line))
        if taken:
            lines.append(line)
        return taken

    wait_until(lambda: not write_line(), BACK_SECONDS, "a line is refused")
    cluster.start("data-1")
    wait_until(write_line, BACK_SECONDS, "the log goes on")
    os.close(log)
    assert path.read_bytes() == b"".join(lines)


def test_a_listing_without_servers_fails_in_time_and_works_when_they_are_back(
    make_cluster: ClusterFactory, mountpoint: Path
) -> None:
    cluster = make_cluster(**SMALL, deadlines=DEADLINES)
    cluster.start()
    cluster.mount(mountpoint)
    (mountpoint / "a").write_bytes(b"content")
    for name in cluster.server_names:
        cluster.kill(name)
    assert not in_time(lambda: names(mountpoint))
    cluster.start()
    wait_until(lambda: in_time(lambda: names(mountpoint)), BACK_SECONDS, "the mount is listed again")
    assert names(mountpoint) == ["a"]
    assert (mountpoint / "a").read_bytes() == b"content"


def test_why_calls_fail_without_the_metadata_server_is_told(
    make_cluster: ClusterFactory, mountpoint: Path
) -> None:
    """By `quorumfs status` alone, as the README says: the mount itself answers nothing."""
    cluster = make_cluster(**SMALL, deadlines=DEADLINES)
    cluster.start()
    name = cluster.mount(mountpoint)
    await_writable(cluster)
    cluster.kill("metaserver")
    assert not in_time(lambda: names(mountpoint))
    said = run_command(cluster.directory, "status", "--state", str(cluster.directory))
    assert said.returncode == 1
    assert said.stdout.splitlines()[1].startswith("why: the metadata server is down (")
    assert "Connection refused" in cluster.log_file(name).read_text()
