"""The simulated disk: files and names are lost and torn, those of a real metadata database too."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import sqlite3
import zlib
from pathlib import Path

import pytest

from metaserver import log, log_failure, log_mark, pages, sums
from tests.sim import sqlite_files
from tests.sim.disk import Disk
from tests.support import take_seed
from tests.unit.metaserver.harness import Harness
from tests.unit.metaserver.torn import change, is_whole
from wire import directories
from wire.errors import InternalError


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    root = tmp_path / "meta"
    root.mkdir()
    made = Disk(root, random.Random(take_seed()))
    for name in ("_hooked", "_hooked_log"):
        monkeypatch.setattr(pages, name, getattr(pages, name))  # put back in the end
    sqlite_files.install(lambda path: made if path.startswith(str(root)) else None)
    for module in (log, log_failure, log_mark, sums, directories):
        monkeypatch.setattr(module, "os", made)
    return made


def pages_of(file: Path) -> list[bytes]:
    content = file.read_bytes()
    return [content[at : at + pages.PAGE_BYTES] for at in range(0, len(content), pages.PAGE_BYTES)]


def is_torn(number: int, page: bytes) -> bool:
    """Tell whether a page is none of those that were ever written."""
    checksum = zlib.crc32(page[: pages.STAMPED_BYTES], number)
    return pages.STAMP.unpack(page[pages.STAMPED_BYTES :]) != (number, checksum) and any(page)


class Life:
    """A server on the disk through kills and power losses; what was done, and what of it is durable."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.done = disk, list[bytes]()
        self.durable = 0
        self.begin()

    def begin(self) -> None:
        self.meta = Harness(self.disk.root)
        self.meta.wait(self.meta.log.sync())
        self.disk.names.clear()  # a server syncs its directory before it serves

    def change(self, count: int) -> None:
        for _ in range(count):
            self.done.append(b"file %d" % len(self.done))
            change(self.meta, self.done[-1])

    def sync(self) -> None:
        self.meta.wait(self.meta.log.sync())
        self.durable = len(self.done)

    def checkpoint(self) -> None:
        self.meta.store.end_reading()
        self.meta.store.log_mark.checkpoint(self.meta.store.execute)

    def fail_in_a_checkpoint(self, steps: int, *, power: bool) -> bool:
        """Return whether it failed before the checkpoint was over."""
        failed: list[bool] = []
        self.disk.fail_in(steps, "/meta.sqlite", lambda: failed.append(True))
        self.checkpoint()
        self.disk.go_back(self.meta.stop)
        if power:
            self.disk.lose_power()
        else:
            self.durable = len(self.done)
        return bool(failed)

    def look(self) -> None:
        whole = [is_whole(self.meta, name) for name in self.done]
        assert all(whole[: self.durable]), "a durable file is gone"
        assert whole == sorted(whole, reverse=True), "a later file is there without an earlier"
        del self.done[sum(whole) :]


@pytest.mark.parametrize("power", [True, False])
def test_a_checkpoint_cut_off_at_any_write_leaves_all_that_was_durable(disk: Disk, power: bool) -> None:
    """A power loss tears pages of the database's main file, and none is taken for damage afterwards."""
    life = Life(disk)
    failures = torn = 0
    for _ in range(30):
        life.change(disk.rng.randrange(3))
        life.sync()
        life.change(disk.rng.randrange(4))
        if disk.rng.random() < 0.5:
            life.checkpoint()  # the log begins over with the next change
            life.change(disk.rng.randrange(3))
        failures += life.fail_in_a_checkpoint(disk.rng.randrange(12), power=power)
        torn += sum(is_torn(n, page) for n, page in enumerate(pages_of(disk.root / "meta.sqlite"), 1))
        life.begin()
        life.look()
        assert pages.damaged_pages(life.meta.path) == []
    assert failures > 3
    assert (torn > 0) == power, f"{torn} torn pages"
    life.meta.close()  # checks every page and every rule
    assert not any(is_torn(n, page) for n, page in enumerate(pages_of(disk.root / "meta.sqlite"), 1))


@pytest.mark.parametrize("asked_by", ["a checkpoint", "an fsync"])
def test_what_a_failed_sync_left_in_the_log_is_durable_after_the_next_start(
    disk: Disk, asked_by: str
) -> None:
    """The kernel has dropped it, and can read it still: a second sync would succeed without it."""
    life = Life(disk)
    failures = dropped = 0
    for _ in range(30):
        life.change(disk.rng.randrange(1, 4))
        life.sync()
        life.change(disk.rng.randrange(1, 4))
        disk.syncs_fail = True
        with contextlib.suppress(sqlite3.OperationalError, InternalError):
            life.checkpoint() if asked_by == "a checkpoint" else life.sync()
        disk.syncs_fail = False
        if log_failure.reason(os.fsencode(life.meta.path)):  # not that of another file
            failures += 1
            assert_takes_no_change(life)
        dropped += bool(disk.dropped.get(f"{life.meta.path}-wal"))
        disk.go_back(life.meta.stop)
        life.begin()  # it must sync before it serves
        life.durable = len(life.done)
        life.fail_in_a_checkpoint(disk.rng.randrange(12), power=True)
        life.begin()
        life.look()
        assert pages.damaged_pages(life.meta.path) == []
    assert failures > 3
    assert dropped > 3
    life.meta.close()


def assert_takes_no_change(life: Life) -> None:
    """Neither it, nor any checkpoint, relies on the log before the next start; `status` says so."""
    size = life.meta.path.stat().st_mtime_ns
    with pytest.raises(InternalError, match="disk failed"):
        change(life.meta, b"one more")
    with pytest.raises(InternalError, match="disk failed"):
        life.sync()
    with pytest.raises(sqlite3.OperationalError):
        life.checkpoint()
    assert life.meta.path.stat().st_mtime_ns == size
    assert life.meta.service.status()["pages"]["log_failure"]
    life.look()


def test_the_name_of_the_mark_that_a_life_begins_is_durable(disk: Disk) -> None:
    """As after `restore`, which moves the one before aside; or damage to the log would go unnoticed."""
    meta = Harness(disk.root)  # opens a session, which is durable when it is answered
    mark = log_mark.mark_file(meta.path)
    assert mark.stat().st_size
    assert str(mark) not in [path for _, path, _ in disk.names], "a power loss may take it"
    meta.close()


@pytest.mark.parametrize("directory_fails", [False, True])
def test_a_mark_that_cannot_be_written_asks_for_no_log_that_was_emptied(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, directory_fails: bool
) -> None:
    """A power loss may bring back the mark that was removed instead."""
    life = Life(disk)
    emptied = failed = 0
    for _ in range(20):
        life.change(disk.rng.randrange(1, 4))
        life.sync()
        life.checkpoint()
        disk.full, disk.refusal, disk.syncs_fail = True, errno.EIO, directory_fails
        with monkeypatch.context() as pathlib_too:
            pathlib_too.setattr(pathlib, "os", disk)
            life.meta.store.empty_log()
        emptied += not Path(f"{life.meta.path}-wal").stat().st_size
        failed += bool(log_failure.reason(os.fsencode(life.meta.path)))
        disk.full = disk.syncs_fail = False
        disk.go_back(life.meta.stop)
        disk.lose_power()
        life.begin()
        life.look()
    assert emptied if not directory_fails else failed, (emptied, failed)
    life.meta.close()


def test_a_log_that_cannot_be_read_for_a_moment_is_not_taken_for_damage(disk: Disk) -> None:
    life = Life(disk)
    refused = 0
    for _ in range(40):
        life.change(2)
        disk.failing = True
        try:
            life.checkpoint()
            life.look()
        except (sqlite3.OperationalError, InternalError) as error:
            refused += 1
            assert not pages.is_damage(error)
        disk.failing = False
        assert not pages.damaged_frames(life.meta.path)
        life.look()
    assert refused > 3
    life.meta.close()


def test_what_a_later_sync_writes_over_is_durable(tmp_path: Path) -> None:
    """The rest of what an earlier one dropped is not."""
    rng = random.Random(take_seed())
    lost = 0
    for turn in range(300):
        place = tmp_path / f"{turn}"
        place.mkdir()
        disk = Disk(place, rng)
        handle = disk.open(place / "file", os.O_CREAT | os.O_RDWR)
        disk.pwrite(handle, bytes(64), 0)
        disk.sync(str(place / "file"))
        disk.names.clear()
        disk.pwrite(handle, b"a" * 40, begin := rng.randrange(24))
        disk.syncs_fail = True
        with contextlib.suppress(OSError):
            disk.fdatasync(handle)
        disk.syncs_fail = False
        disk.pwrite(handle, b"b" * rng.randrange(1, 64), other := rng.randrange(64))
        expected = os.pread(handle, 200, 0)
        disk.fdatasync(handle)
        disk.close(handle)
        disk.lose_power()
        found = (place / "file").read_bytes()
        assert len(found) == len(expected)
        dropped = range(begin, begin + 40) if disk.sync_failed else range(0)
        for at, (old, new) in enumerate(zip(found, expected, strict=True)):
            assert old == new or (at in dropped and new == ord("a") and old == 0), (at, other)
        lost += found != expected
    assert lost > 30


def outcomes(root: Path, seed: int, sync: set[str]) -> set[bytes | None]:
    """Return what may be left of a new file after a power loss, when so much of it was synced."""
    found: set[bytes | None] = set()
    for turn in range(200):
        place = root / f"{turn}"
        place.mkdir(parents=True)
        disk = Disk(place, random.Random(seed + turn))
        with disk.open_file(place / "draft", "wb") as file:
            file.write(b"content")
            file.flush()
            if "file" in sync:
                disk.fsync(file.fileno())
        disk.rename(place / "draft", place / "name")
        if "directory" in sync:
            handle = disk.open(place, 0)
            disk.fsync(handle)
            disk.close(handle)
        assert not disk.paths, "a file that was closed has no number any more"
        disk.lose_power()
        name = place / "name"
        found.add(name.read_bytes() if name.exists() else None)
    return found


def test_a_new_file_stays_only_once_it_and_its_name_are_synced(tmp_path: Path) -> None:
    seed = take_seed()
    assert outcomes(tmp_path / "all", seed, {"file", "directory"}) == {b"content"}
    assert outcomes(tmp_path / "file", seed, {"file"}) == {b"content", None}
    assert outcomes(tmp_path / "name", seed, {"directory"}) == {b"content", b""}
    assert outcomes(tmp_path / "none", seed, set()) == {b"content", b"", None}


def test_a_new_directory_stays_only_once_its_name_is_synced(tmp_path: Path) -> None:
    rng = random.Random(take_seed())
    left = set()
    for turn in range(60):
        place = tmp_path / f"{turn}"
        place.mkdir()
        disk = Disk(place, rng)
        disk.mkdir(place / "new")
        disk.close(disk.open(place / "new" / "file", os.O_CREAT | os.O_WRONLY))
        disk.lose_power()
        left.add(tuple(sorted(path.name for path in place.rglob("*"))))
    assert left == {(), ("new",), ("file", "new")}


def test_the_names_of_an_older_state_that_was_put_back_are_durable(tmp_path: Path) -> None:
    """Also those of files that SQLite empties and writes anew."""
    root = tmp_path / "meta"
    root.mkdir()
    disk, file = Disk(root, random.Random(take_seed())), root / "meta.sqlite-wal"
    file.write_bytes(b"old")
    disk.note_new(str(file))
    disk.snapshot()
    assert disk.roll_back()
    disk.note_new(str(file))
    disk.lose_power()
    assert file.read_bytes() == b"old"
    disk.blank()
    file.touch()
    disk.note_new(str(file))
    assert disk.names
