"""Copies of a database in use, and a database put back from one."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metaserver import copies, offline, pages
from metaserver.check import snapshot
from metaserver.directory import RESTORED_NAME, Directory
from metaserver.restore import restore
from metaserver.store import Store
from tests.support import wait_until
from tests.unit.lost_names import LostNames
from tests.unit.metaserver.harness import Harness
from wire.config import ConfigError
from wire.errors import Busy, InvalidArgument, NotFound


def copy_of(meta: Harness, target: Path) -> Path:
    """Make a copy through the calls of the server, piece by piece."""
    number = meta.service.begin_copy()
    said = wait_until(
        lambda: (told := meta.service.copy_progress(number))["state"] != "running" and told, 10, "copy"
    )
    assert said["state"] == "done", said
    contents = b""
    while piece := meta.wait(meta.service.read_copy(number, len(contents), 5000)):
        contents += piece
    assert len(contents) == said["bytes"]
    target.write_bytes(contents)
    meta.service.drop_copy(number)
    return target


def test_a_copy_is_of_one_moment_and_whole(meta: Harness, tmp_path: Path) -> None:
    file = meta.create(1, b"a")
    meta.write(file.ino, 0, 100)
    changes = meta.service.counts()["changes"]
    assert meta.service.counts()["changes"] == changes
    number = meta.service.begin_copy()
    meta.create(1, b"later")
    with pytest.raises(Busy):
        meta.service.begin_copy()
    wait_until(lambda: meta.service.copy_progress(number)["state"] == "done", 10, "copy")
    said = meta.service.copy_progress(number)
    assert said["changes"] == changes != meta.service.counts()["changes"]
    with pytest.raises(Busy):
        meta.service.begin_copy()
    with pytest.raises(InvalidArgument):
        meta.wait(meta.service.read_copy(number, -1, 10))
    meta.service.drop_copy(number)
    with pytest.raises(NotFound):
        meta.wait(meta.service.read_copy(number, 0, 10))
    copy = copy_of(meta, tmp_path / "copy")
    found = copies.inspect(copy, "test")
    assert (found.findings, found.blocks, found.inodes) == ([], 1, 3)
    assert not list(tmp_path.glob("meta.sqlite.copy*")), "nothing is left in the server's directory"
    with pytest.raises(ConfigError, match="not of this one"):
        copies.inspect(copy, "other")


def test_what_is_no_whole_copy_is_refused(meta: Harness, tmp_path: Path) -> None:
    for number in range(50):
        meta.create(1, b"%d" % number)
    copy = copy_of(meta, tmp_path / "copy")
    good = copy.read_bytes()
    for at in range(200, len(good), 4096):
        copy.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ConfigError):
            copies.inspect(copy, "test")
    for damaged in (good[:-4096], good[:-1], good[:100], b"", b"no database" * 1000):
        copy.write_bytes(damaged)
        with pytest.raises(ConfigError):
            copies.inspect(copy, "test")
    with pytest.raises(ConfigError):
        copies.inspect(tmp_path / "absent", "test")
    with pytest.raises(ConfigError, match="does not say when"):
        copies.inspect(_unmarked(meta, tmp_path), "test")


def _unmarked(meta: Harness, place: Path) -> Path:
    with closing(snapshot(meta.path)) as source:
        copies.write(source, place / "unmarked", None)
    return place / "unmarked"


def begin(directory: Path) -> None:
    """Start and stop on a directory, as the process does, after which it is as it was."""
    with closing(Directory(directory, "test")) as claimed:
        Store(claimed.database, "test", complete=claimed.complete).close()
        if not claimed.complete:
            claimed.describe()


def names(directory: Path) -> list[bytes]:
    """Return the names in the root of a stopped server's database."""
    with closing(Directory(directory, "test")) as claimed, closing(pages.connect(claimed.database)) as found:
        return [name for (name,) in found.execute("SELECT name FROM entries ORDER BY name")]


@pytest.fixture
def copy(meta: Harness, tmp_path: Path) -> Path:
    """A copy of a database with one file."""
    meta.create(1, b"copied")
    return copy_of(meta, tmp_path / "copy")


@pytest.mark.parametrize("before", ["whole", "damaged", "no database", "nothing"])
def test_a_copy_is_put_back_whatever_was_there(copy: Path, tmp_path: Path, before: str) -> None:
    place = tmp_path / "meta"
    if before != "nothing":
        begin(place)
    if before == "damaged":
        (place / "meta.sqlite").write_bytes(b"garbage" * 3000)
        (place / "meta.sqlite-wal").write_bytes(b"a log of something else")
    if before == "no database":
        (place / "meta.sqlite").unlink()
    done = restore(copy, place, "test")
    assert names(place) == [b"copied"]
    begin(place)
    kept = sorted(
        path.name for path in done.aside.iterdir() if not path.name.endswith(("-shm", "-sums", "-mark"))
    )
    if before == "damaged":
        assert kept == ["meta.sqlite", "meta.sqlite-wal"]
        assert (done.aside / "meta.sqlite").read_bytes() == b"garbage" * 3000
    else:
        assert kept[:1] == (["meta.sqlite"] if before == "whole" else [])
    assert restore(copy, place, "test").aside != done.aside
    assert copies.inspect(copy, "test").findings == [], "the copy itself is as it was"


def test_a_restore_that_was_cut_short_leaves_the_old_or_the_new(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames = 0

    def failing(self: Path, target: Path, *, at: int) -> Path:
        nonlocal renames
        renames += 1
        if renames == at:
            raise KeyboardInterrupt
        return whole(self, target)

    whole = Path.rename
    seen = set()
    for at in range(1, 20):
        place = tmp_path / f"meta-{at}"
        begin(place)
        (place / "meta.sqlite-wal").write_bytes(b"")
        renames = 0
        monkeypatch.setattr(Path, "rename", lambda self, target, at=at: failing(self, target, at=at))
        try:
            restore(copy, place, "test")
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(Path, "rename", whole)
        decided = (place / RESTORED_NAME).exists()
        assert names(place) == ([b"copied"] if decided else [])
        begin(place)
        seen.add(decided)
    assert seen == {False, True}


def test_a_power_loss_in_a_restore_takes_no_database(copy: Path, tmp_path: Path) -> None:
    """Neither the one that was moved aside by the restore before, nor that which is being moved aside."""
    place, again = tmp_path / "cluster" / "meta", 0
    begin(place)
    restore(copy, place, "test")
    begin(place)
    first, second = (place / "before-restore-1" / "meta.sqlite").read_bytes(), place / "meta.sqlite"
    present = second.read_bytes()
    assert first != present
    seen = set()

    def power_fails(disk: LostNames) -> None:
        nonlocal again
        again += 1
        for crashed in disk.states(tmp_path / f"crashed-{again}"):
            Directory(crashed, "test").close()
            kept = {path.read_bytes() for path in crashed.glob("before-restore-*/meta.sqlite")}
            is_new = (crashed / "meta.sqlite").read_bytes() != present
            assert kept == ({first, present} if is_new else {first})
            seen.add(is_new)

    with LostNames(place, power_fails).watching():
        restore(copy, place, "test")
    assert seen == {False, True}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(place)], check=True, timeout=10)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes of a disk free; return what takes the rest."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    filler.write_bytes(bytes(found.f_bavail * found.f_frsize - left))
    return filler


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_not_taken_for_damage(small_disk: Path) -> None:
    """Who followed the advice to put a copy back would lose all that is newer, for want of some room."""
    place = small_disk / "meta"
    begin(place)
    filler = fill(small_disk, 0)
    with pytest.raises(ConfigError, match="the room on it") as told, offline.opened(place, "test"):
        pass
    assert "restore" not in str(told.value)
    filler.unlink()
    with offline.opened(place, "test") as connection:
        assert connection.execute("SELECT count(*) FROM inodes").fetchone() == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_database_that_finds_no_room_for_its_repair_is_not_given_up(small_disk: Path) -> None:
    place = small_disk / "meta"
    begin(place)
    with pytest.raises(ConfigError, match="the room on it"), offline.opened(place, "test") as connection:
        fill(small_disk, 0)
        offline.is_whole(connection)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_there_is_a_copy_from_before_a_repair_or_none(small_disk: Path) -> None:
    place = small_disk / "meta"
    begin(place)
    before = sorted(place.iterdir())
    with offline.opened(place, "test") as connection:
        filler = fill(small_disk, 5 * 4096)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            offline.keep_copy(connection, place)
        filler.unlink()
    assert sorted(place.iterdir()) == before
    with offline.opened(place, "test") as connection:
        kept = offline.keep_copy(connection, place)
    assert kept.name == "meta.sqlite.before-repair-1"
    with closing(pages.connect(kept, read_only=True)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_restore_that_failed_leaves_nothing_behind(copy: Path, small_disk: Path) -> None:
    place = small_disk / "meta"
    begin(place)
    before = sorted(place.iterdir())
    fill(small_disk, 5 * 4096)
    with pytest.raises(ConfigError, match=r"full|No space"):
        restore(copy, place, "test")
    assert sorted(place.iterdir()) == before
    (place / f"{RESTORED_NAME}.partial").write_bytes(b"of one that was killed")
    Directory(place, "test").close()
    assert sorted(place.iterdir()) == before


def test_a_directory_in_use_is_left_alone(copy: Path, tmp_path: Path) -> None:
    place = tmp_path / "meta"
    with closing(Directory(place, "test")), pytest.raises(ConfigError, match="uses this directory"):
        restore(copy, place, "test")
    begin(place)
    with pytest.raises(ConfigError, match="belongs to"):
        restore(copy, place, "other")


def test_a_copy_that_the_disk_fails_is_over_though_it_cannot_be_removed(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or `backup` would wait for it for ever, and no other copy could be begun."""
    real = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if ".copy" in path.name and path.exists():
            raise OSError(errno.EROFS, "Read-only file system")
        real(path, missing_ok=missing_ok)

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(copies, "sync_file", fail)
        failing.setattr(Path, "unlink", refuse)
        number = meta.service.begin_copy()
        wait_until(lambda: meta.service.copy_progress(number)["state"] != "running", 10, "end of the copy")
        said = meta.service.copy_progress(number)
        assert said["state"] == "failed" and "Input/output error" in said["error"]
    number = meta.service.begin_copy()
    wait_until(lambda: meta.service.copy_progress(number)["state"] == "done", 10, "copy")


def test_a_copy_that_cannot_be_begun_leaves_nothing(
    meta: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk each `backup` that is tried would leave a file beside what it was to make."""
    place = tmp_path / "backups"
    place.mkdir()

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(snapshot(meta.path)) as connection, monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space"):
            copies.write(connection, place / "copy", 1)
    assert list(place.iterdir()) == []


def test_a_server_that_ends_ends_its_copy(meta: Harness) -> None:
    number = meta.service.begin_copy()
    meta.service.copying.close()
    assert meta.service.copy_progress(number)["state"] in ("failed", "done")
    with pytest.raises((NotFound, RuntimeError)):
        asyncio.run(meta.service.copying.read(number, 0, 1))
