"""A whole older log put back under a stopped metadata server is refused; and what crashes leave never is.

Histories of changes, syncs, checkpoints, stops, kills and power losses at random, with what a disk may have
done of the writes to the log and to the mark; after stops and kills, a log of before is put back.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from metaserver import log_mark
from metaserver.log_mark import Need, mark_file
from metaserver.offline import opened
from metaserver.store import Store
from tests.support import take_seed
from tests.unit.metaserver.harness import Harness
from tests.unit.metaserver.torn import after_power_loss, any_order, change, is_whole, nothing, torn
from wire.config import ConfigError

STEPS = 150
LOG = "meta.sqlite-wal"
MARK = "meta.sqlite-mark"
HEADER_BYTES = 32


class RecordingOs:
    """Stands for `os` where the mark is written; knows which of its versions a power loss may leave."""

    def __init__(self) -> None:
        self.versions: list[bytes | None] = [None]

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self.versions.append(data)
        return os.pwrite(descriptor, data, offset)

    def fdatasync(self, descriptor: int) -> None:
        del self.versions[:-1]
        os.fdatasync(descriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def read_or_empty(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


class Machine:
    """A metadata server through its lives, each of which has a directory of its own."""

    def __init__(self, base: Path, chance: random.Random, mark: RecordingOs) -> None:
        self.base, self.chance, self.mark = base, chance, mark
        self.places = 0
        self.count = 0
        self.synced = b""
        """What is durable of the log; also of one that was removed or emptied just now."""
        self.done: list[bytes] = []
        self.durable = 0
        self.noted = True
        """Whether the mark has all that was moved into the database."""
        self.saved: list[bytes] = []
        self.refused = self.put_back = 0
        self.begin(self.next_place())

    def next_place(self) -> Path:
        self.places += 1
        return self.base / f"{self.places}"

    def begin(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        self.place = place
        self.meta = Harness(place)  # makes the log durable, as a server does before it serves
        whole = [is_whole(self.meta, name) for name in self.done]
        assert all(whole[: self.durable]), "a durable file is gone"
        assert whole == sorted(whole, reverse=True), "a later file is there without an earlier"
        self.done = self.done[: sum(whole)]
        self.after_sync()

    @property
    def log(self) -> Path:
        return self.place / LOG

    def after_sync(self) -> None:
        self.synced = self.log.read_bytes()
        self.noted = True
        self.durable = len(self.done)

    # what a server does

    def change(self) -> None:
        for _ in range(self.chance.randrange(1, 4)):
            self.count += 1
            self.done.append(b"file %d" % self.count)
            change(self.meta, self.done[-1])

    def sync(self) -> None:
        self.meta.wait(self.meta.log.sync())
        self.after_sync()

    def checkpoint(self) -> None:
        self.meta.store.end_reading()
        self.meta.store.log_mark.checkpoint(self.meta.store.execute)
        self.synced = self.log.read_bytes()
        self.noted = True

    def checkpoint_by_a_commit(self) -> None:
        self.meta.store.end_reading()
        self.meta.store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self.synced = self.log.read_bytes()
        self.noted = False

    def retire(self) -> None:
        self.meta.store.end_reading()
        self.meta.store.log_mark.retire(self.meta.store.execute)
        self.synced = self.log.read_bytes()
        self.noted = True

    def empty(self) -> None:
        self.retire()
        for _ in range(self.chance.randrange(1, 4)):
            self.meta.store.empty_log()

    def save(self) -> None:
        self.saved.append(self.log.read_bytes())

    # how it ends

    def killed(self) -> Path:
        """Return the directory that SIGKILL leaves now."""
        place = self.next_place()
        shutil.copytree(self.place, place, ignore=shutil.ignore_patterns("*-shm"))
        return place

    def after_power_loss(self) -> Path:
        """Return the directory that a power loss leaves now."""
        place = self.killed()
        mark = self.chance.choice(self.mark.versions)
        if mark is None:
            (place / MARK).unlink(missing_ok=True)
        else:
            (place / MARK).write_bytes(mark)
        log = place / LOG
        now, synced = read_or_empty(log), self.synced
        if len(now) < HEADER_BYTES:
            if synced and self.chance.random() < 0.5:  # neither its end nor its new length was durable
                log.write_bytes(synced)
            return place
        if now[:HEADER_BYTES] != synced[:HEADER_BYTES]:  # of a log that is begun SQLite syncs the header
            rest = synced[HEADER_BYTES:] if len(now) >= len(synced) else b""
            synced = now[:HEADER_BYTES] + rest
        disk = self.chance.choice((any_order, torn, nothing))
        log.write_bytes(after_power_loss(self.chance, synced, now, disk))
        self.mark.versions = [mark]
        return place

    def replace_by(self, place: Path) -> None:
        """Go on in another directory; what was open belongs to a dead process."""
        meta, mark = self.meta, self.mark.versions[:]
        meta.stop()
        self.mark.versions[:] = mark
        shutil.rmtree(self.place)
        self.begin(place)

    def kill(self) -> None:
        marked = log_mark._marked(self.place / "meta.sqlite")
        if self.noted and marked and marked.need is not Need.MOVED:
            self.try_older_logs(self.killed())
        self.durable = len(self.done)
        self.replace_by(self.killed())

    def lose_power(self) -> None:
        place = self.after_power_loss()
        salts = read_or_empty(self.log)[16:24]  # with these a log is not older that has what is lost now
        self.saved = [log for log in self.saved if log[16:24] != salts]
        self.mark.versions = [read_or_empty(place / MARK) or None]
        self.replace_by(place)

    def stop(self) -> None:
        self.synced = self.log.read_bytes()
        self.meta.stop()
        assert not self.log.exists()
        self.durable = len(self.done)
        marked = log_mark._marked(self.place / "meta.sqlite")
        assert marked and marked.need is Need.LAST
        self.try_older_logs(self.killed())
        if self.chance.random() < 0.5:
            self.die_at_the_start()
        if self.chance.random() < 0.3:
            self.use_a_tool()
        self.begin(self.place)

    def die_at_the_start(self) -> None:
        """Begin, and die before the log was made durable, with or without power."""
        for _ in range(self.chance.randrange(1, 3)):
            store = Store(self.place / "meta.sqlite", "test", complete=True, now_ns=self.meta._tick)
            place = self.chance.choice((self.killed, self.after_power_loss))()
            mark = read_or_empty(place / MARK) or None
            store.close()
            self.mark.versions = [mark]
            self.synced = read_or_empty(place / LOG)
            shutil.rmtree(self.place)
            self.place = place

    def use_a_tool(self) -> None:
        """Use, and perhaps kill, a tool that mends the database."""
        place = None
        with opened(self.place, "test") as connection:
            for number in range(self.chance.randrange(3)):
                connection.execute("UPDATE inodes SET mtime_ns = ?", (number,))
            if self.chance.random() < 0.5:
                place = self.killed()
        if place is not None:
            shutil.rmtree(self.place)
            self.place = place

    def try_older_logs(self, place: Path) -> None:
        """Put back a log of before: refused, or nothing that was durable is missing."""
        for log in self.chance.sample(self.saved, min(2, len(self.saved))):
            (place / LOG).write_bytes(log)
            self.put_back += 1
            with suppress(FileNotFoundError):
                (place / "meta.sqlite-shm").unlink()
            try:
                again = Harness(place)
            except ConfigError as error:
                assert "\n" not in str(error)
                self.refused += 1
                continue
            assert all(is_whole(again, name) for name in self.done[: self.durable])
            again.close()
            break
        shutil.rmtree(place)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingOs]:
    recording = RecordingOs()
    monkeypatch.setattr(log_mark, "os", recording)
    yield recording


def test_no_order_of_crashes_is_refused_and_no_older_log_is_served(tmp_path: Path, mark: RecordingOs) -> None:
    chance = random.Random(take_seed())
    machine = Machine(tmp_path, chance, mark)
    often: list[Callable[[], None]] = [machine.change, machine.sync, machine.save]
    seldom = [machine.checkpoint, machine.checkpoint_by_a_commit, machine.retire, machine.empty]
    ends = [machine.kill, machine.lose_power, machine.stop]
    for _ in range(STEPS):
        chance.choice(chance.choice((often, often, seldom, ends)))()
    assert machine.refused > machine.put_back // 4, "hardly a log was older: the test tests nothing"
    machine.meta.close()


def a_little_older(meta: Harness) -> None:
    change(meta, b"more")


def begun_over(meta: Harness) -> None:
    meta.store.end_reading()
    meta.store.log_mark.checkpoint(meta.store.execute)
    change(meta, b"more")


def emptied(meta: Harness) -> None:
    meta.store.empty_log()
    change(meta, b"more")


def of_an_earlier_start(meta: Harness) -> None:
    meta.restart()
    change(meta, b"more")


AGES = [a_little_older, begun_over, emptied, of_an_earlier_start]


def with_an_older_log(tmp_path: Path, go_on: Callable[[Harness], None]) -> tuple[Harness, bytes]:
    """Return a server whose changes were all durable, and what its log was before the last ones."""
    (tmp_path / "live").mkdir()
    meta = Harness(tmp_path / "live")
    change(meta, b"before")
    meta.wait(meta.log.sync())
    older = meta.path.with_name(LOG).read_bytes()
    go_on(meta)
    meta.wait(meta.log.sync())
    return meta, older


@pytest.mark.parametrize("go_on", AGES)
def test_an_older_log_after_a_kill_is_refused_until_the_last_is_put_back(
    tmp_path: Path, go_on: Callable[[Harness], None]
) -> None:
    meta, older = with_an_older_log(tmp_path, go_on)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "live", killed, ignore=shutil.ignore_patterns("*-shm"))
    last = (killed / LOG).read_bytes()
    (killed / LOG).write_bytes(older)
    what = "of its last pages" if go_on is a_little_older else r"not the last log .* put that file back"
    for _ in range(2):
        with pytest.raises(ConfigError, match=what) as caught:
            Harness(killed)
        assert "\n" not in str(caught.value) and "quorumfs restore" in str(caught.value)
    assert (killed / LOG).read_bytes() == older
    (killed / LOG).write_bytes(last)
    again = Harness(killed)
    assert is_whole(again, b"before") and is_whole(again, b"more")
    again.close()
    meta.close()


@pytest.mark.parametrize("go_on", AGES)
def test_an_older_log_after_a_clean_end_is_refused_until_it_is_moved_away(
    tmp_path: Path, go_on: Callable[[Harness], None]
) -> None:
    meta, older = with_an_older_log(tmp_path, go_on)
    meta.stop()
    log = meta.path.with_name(LOG)
    for use in (Harness, lambda place: opened(place, "test").__enter__(), Harness):
        log.write_bytes(older)
        with pytest.raises(ConfigError, match=r"not the last log .* move it away") as caught:
            use(meta.path.parent)
        assert "\n" not in str(caught.value)
    log.unlink()
    meta.start()
    assert is_whole(meta, b"before") and is_whole(meta, b"more")
    meta.close()


def test_a_log_begun_anew_beside_a_mark_of_an_older_release_is_not_refused(tmp_path: Path) -> None:
    """It noted nothing before it began a log with random salts, and its notes were durable now and then."""
    meta, _ = with_an_older_log(tmp_path, of_an_earlier_start)
    mark_file(meta.path).write_bytes(
        log_mark._encode(log_mark.Durable(b"of a log", 7, Need.MOVED)),
    )
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "live", killed, ignore=shutil.ignore_patterns("*-shm"))
    again = Harness(killed)
    assert is_whole(again, b"more")
    again.close()
    meta.close()


def test_a_log_emptied_over_and_over_on_a_full_disk_is_known_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time SQLite counts its salts on, with nothing in it that could be noted."""
    monkeypatch.setattr(log_mark, "RESTARTS_MAX", 4)
    meta, older = with_an_older_log(tmp_path, begun_over)
    for _ in range(10):
        meta.store.empty_log()
    change(meta, b"at last")
    for killed in (tmp_path / "not noted", tmp_path / "noted"):
        shutil.copytree(tmp_path / "live", killed, ignore=shutil.ignore_patterns("*-shm"))
        again = Harness(killed)
        assert is_whole(again, b"at last")
        again.close()
        meta.wait(meta.log.sync())
    (tmp_path / "noted" / LOG).write_bytes(older)
    with pytest.raises(ConfigError, match="not the last log"):
        Harness(tmp_path / "noted")
    meta.close()
