"""Damage in the log: under a running server, and of the whole log of a stopped one."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from metaserver import frames, log_mark, pages
from metaserver.frames import FRAME_BYTES, LOG_HEADER_BYTES, PAGE_BYTES
from metaserver.log_mark import mark_file
from metaserver.offline import opened
from metaserver.sums import sums_file
from tests.support import take_seed
from tests.unit.metaserver.harness import Harness
from wire.config import ConfigError
from wire.errors import InternalError, QuorumfsError

FILES = 30


def log_of(meta: Harness) -> Path:
    return meta.path.with_name("meta.sqlite-wal")


def begin(place: Path) -> Harness:
    """Some files in the database, and some whose changes are in the log alone."""
    place.mkdir()
    meta = Harness(place)
    for number in range(FILES):
        meta.create(1, b"%d" % number + b"x" * 100)
    meta.store.empty_log()
    for number in range(FILES, 2 * FILES):
        meta.create(1, b"%d" % number + b"x" * 100)
    meta.wait(meta.log.sync())
    return meta


def names_by_others(meta: Harness) -> list[bytes]:
    """Ask on a connection of its own, which has nothing in memory."""
    with closing(pages.connect(meta.path, read_only=True)) as connection:
        return [bytes(name) for (name,) in connection.execute("SELECT name FROM entries ORDER BY name")]


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_page_is_added_up_as_by_the_plain_loop(big_endian: bool) -> None:
    chance = random.Random(take_seed())
    for page in (bytes(PAGE_BYTES), b"\xff" * PAGE_BYTES, *(chance.randbytes(PAGE_BYTES) for _ in range(50))):
        sums = chance.randrange(2**32), chance.randrange(2**32)
        assert frames.add_page(sums, page, big_endian) == frames.add_words(sums, page, big_endian)


@pytest.mark.parametrize("more", [0, 3000])
def test_the_sums_and_page_numbers_are_those_that_sqlite_wrote(tmp_path: Path, more: int) -> None:
    meta = begin(tmp_path / "live")
    for number in range(more):
        meta.create(1, b"more %d" % number)
    raw = log_of(meta).read_bytes()
    index = meta.path.with_name("meta.sqlite-shm").read_bytes()
    header = frames.decode_log_header(raw)
    assert header is not None
    sums = header.sums
    count = 0
    for start in range(LOG_HEADER_BYTES, len(raw) - FRAME_BYTES + 1, FRAME_BYTES):
        frame = raw[start : start + FRAME_BYTES]
        if frame[8:16] != header.salts:
            break  # of the log before
        before = struct.pack(">II", *sums)
        number = int.from_bytes(frame[:4], "big")
        assert frames.is_as_written(frame[24:], number, frame[:24], before, header)
        assert not frames.is_as_written(frame[24:], number + 1, frame[:24], before, header)
        assert (
            int.from_bytes(index[(at := frames.number_offset(count + 1)) : at + 4], sys.byteorder) == number
        )
        sums = struct.unpack(">II", frame[16:24])
        count += 1
    assert count > FILES + 3 * more
    meta.close()


def flip(log: bytearray, start: int) -> None:
    log[start + 1000] ^= 4


def flip_the_header(log: bytearray, start: int) -> None:
    log[start + 20] ^= 4


def zero(log: bytearray, start: int) -> None:
    log[start : start + FRAME_BYTES] = bytes(FRAME_BYTES)


def zero_all(log: bytearray, _start: int) -> None:
    log[:] = bytes(len(log))


def swap(log: bytearray, start: int) -> None:
    other = start - FRAME_BYTES
    log[start : start + FRAME_BYTES], log[other:start] = log[other:start], log[start : start + FRAME_BYTES]


def older(log: bytearray, start: int) -> None:
    """Another version of the page, from a frame before it, without its header."""
    log[start + 24 : start + FRAME_BYTES] = log[start + 24 - 5 * FRAME_BYTES : start - 4 * FRAME_BYTES]


def move_up(log: bytearray, start: int) -> None:
    """A frame is left out: those behind it are whole, but of other pages than their places say."""
    del log[start - 5 * FRAME_BYTES : start - 4 * FRAME_BYTES]


def cut(log: bytearray, start: int) -> None:
    del log[start + 500 :]


@pytest.mark.parametrize("spoil", [flip, flip_the_header, zero, zero_all, swap, older, move_up, cut])
def test_a_log_damaged_under_a_running_server_is_noticed_and_never_copied(
    tmp_path: Path, spoil: Callable[[bytearray, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    meta = begin(tmp_path / "live")
    log = log_of(meta)
    right = names_by_others(meta)
    whole, database = log.read_bytes(), meta.path.read_bytes()
    durable = meta.store.log_mark.look()
    assert durable is not None
    last = LOG_HEADER_BYTES + (durable.frames - 1) * FRAME_BYTES
    noticed = 0
    for start in range(last, last - 6 * FRAME_BYTES, -FRAME_BYTES):
        damaged = bytearray(whole)
        spoil(damaged, start)
        os.truncate(log, len(damaged))
        with log.open("r+b") as file:
            file.write(damaged)
        try:
            assert names_by_others(meta) == right
        except sqlite3.OperationalError as error:
            assert pages.is_damage(error)
        meta.store.end_reading()
        with closing(pages.connect(meta.path, isolation_level=None)) as other:
            try:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.OperationalError as error:
                assert pages.is_damage(error)
                noticed += 1
                assert meta.service.status()["pages"]["damaged_log_pages"]
                assert_nothing_is_acknowledged(meta)
                assert only_right_pages(meta.path.read_bytes(), database, whole)
        log.write_bytes(whole)
        pages.damaged_frames(meta.path).clear()
    assert noticed, "no damage was met: the test tests nothing"
    assert "is not what was written" in caplog.text
    meta.close()


def assert_nothing_is_acknowledged(meta: Harness) -> None:
    """What is committed behind a damaged frame would be gone after a restart."""
    with pytest.raises(InternalError, match="log of the metadata database is damaged"):
        meta.create(1, b"new")
    with pytest.raises(InternalError, match="log of the metadata database is damaged"):
        meta.wait(meta.service.sync_metadata())


def only_right_pages(now: bytes, before: bytes, log: bytes) -> bool:
    """Tell whether each page of the database is the one from before, or one of the log's."""
    logged = {log[start + 24 : start + 4112] for start in range(LOG_HEADER_BYTES, len(log), FRAME_BYTES)}
    starts = range(0, len(now), PAGE_BYTES)
    return all(
        now[start : start + PAGE_BYTES] == before[start : start + PAGE_BYTES]
        or now[start : start + PAGE_BYTES - 8] in logged
        for start in starts
    )


def test_a_page_is_written_once_by_each_transaction(tmp_path: Path) -> None:
    """One that is written to the log twice before the commit would look damaged meanwhile."""
    meta = begin(tmp_path / "live")
    with closing(pages.connect(meta.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 10")
        connection.execute("BEGIN IMMEDIATE")
        for turn in range(3):
            connection.execute(
                "WITH RECURSIVE n(k) AS (VALUES (1) UNION ALL SELECT k + 1 FROM n WHERE k < 1000)"
                " INSERT OR REPLACE INTO xattrs SELECT k * 7919 % 1000, ?, randomblob(300) FROM n",
                (b"%d" % turn,),
            )
        assert connection.execute("SELECT count(*) FROM xattrs").fetchone() == (3000,)
        connection.execute("ROLLBACK")
    assert not pages.damaged_frames(meta.path)
    meta.close()


def crashed(meta: Harness, place: Path) -> Path:
    """Return the directory that a killed server would leave now."""
    place.mkdir()
    for file in (meta.path, log_of(meta), mark_file(meta.path), sums_file(meta.path)):
        if file.exists():
            shutil.copy(file, place)
    return place


def remove(log: Path) -> None:
    log.unlink()


def empty(log: Path) -> None:
    log.write_bytes(b"")


def spoil_the_beginning(log: Path) -> None:
    content = bytearray(log.read_bytes())
    content[17] ^= 1
    log.write_bytes(content)


@pytest.mark.parametrize("spoil", [remove, empty, spoil_the_beginning])
def test_a_log_that_is_gone_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    meta = begin(tmp_path / "live")
    place = crashed(meta, tmp_path / "crashed")
    kept = (place / "meta.sqlite-wal").read_bytes()
    spoil(place / "meta.sqlite-wal")
    for use in (Harness, lambda place: opened(place, "test").__enter__(), Harness):
        with pytest.raises(ConfigError, match="is gone or damaged at its beginning") as caught:
            use(place)
        assert "\n" not in str(caught.value) and "quorumfs restore" in str(caught.value)
    (place / "meta.sqlite-wal").write_bytes(kept)
    again = Harness(place)
    assert len(again.names(1)) == 2 * FILES
    again.close()
    meta.close()


def test_a_log_that_is_in_the_database_may_be_gone(tmp_path: Path) -> None:
    meta = begin(tmp_path / "live")
    meta.store.end_reading()
    meta.store.log_mark.retire(meta.store.execute)
    place = crashed(meta, tmp_path / "retired")
    (place / "meta.sqlite-wal").unlink()
    again = Harness(place)
    assert len(again.names(1)) == 2 * FILES
    again.close()
    meta.create(1, b"after")  # the log begins anew
    meta.wait(meta.log.sync())
    place = crashed(meta, tmp_path / "anew")
    (place / "meta.sqlite-wal").unlink()
    with pytest.raises(ConfigError, match="is gone"):
        Harness(place)
    meta.stop()
    assert not log_of(meta).exists()
    meta.start()
    assert len(meta.names(1)) == 2 * FILES + 1
    meta.close()


def test_what_a_sync_notes_late_does_not_ask_for_an_emptied_log(tmp_path: Path) -> None:
    """The thread of a sync looked before the log was emptied, and notes what it saw afterwards."""
    meta = begin(tmp_path / "live")
    seen = meta.store.log_mark.look()
    meta.store.empty_log()
    meta.store.log_mark.keep(seen)
    again = Harness(crashed(meta, tmp_path / "crashed"))
    assert len(again.names(1)) == 2 * FILES
    again.close()
    meta.close()


def test_a_log_is_not_emptied_before_it_is_noted_to_be_in_the_database(tmp_path: Path) -> None:
    """The thread that keeps the log short is at it at the first try, and has ended at the next statement."""
    meta = begin(tmp_path / "live")
    others_turn = iter([True])
    told: list[str] = []

    def execute(statement: str) -> sqlite3.Cursor:
        told.append(statement)
        if "PASSIVE" in statement and next(others_turn, False):
            return meta.store._connection.execute("SELECT 1, -1, -1")  # as SQLite answers then
        done = meta.store._connection.execute(statement)
        place = tmp_path / f"crashed-{len(told)}"
        again = Harness(crashed(meta, place))
        assert len(again.names(1)) == 2 * FILES
        again.close()
        return done

    meta.store.keep_reading(False)  # as who has the thread at it
    meta.store.execute = execute  # type: ignore[method-assign,assignment]
    meta.store.empty_log()
    meta.store.execute = meta.store._connection.execute
    assert sum("TRUNCATE" in statement for statement in told) == 1
    assert not log_of(meta).stat().st_size
    meta.close()


def test_without_room_to_note_that_the_log_is_moved_nothing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = begin(tmp_path / "live")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(log_mark.os, "pwrite", fail)
        meta.store.empty_log()
    assert not mark_file(meta.path).exists()
    again = Harness(crashed(meta, tmp_path / "crashed"))
    again.close()
    try:
        meta.create(1, b"goes on")
        meta.wait(meta.log.sync())
    except QuorumfsError as error:
        pytest.fail(error.message)
    assert mark_file(meta.path).exists()
    meta.close()


def test_a_damaged_mark_refuses_no_whole_log(tmp_path: Path) -> None:
    """It is a note: what cannot be relied on asks for nothing."""
    meta = begin(tmp_path / "live")
    older = mark_file(meta.path).read_bytes()
    meta.create(1, b"last")
    meta.wait(meta.log.sync())
    mark = mark_file(meta.path).read_bytes()
    assert mark != older
    flipped = [mark[:at] + bytes([mark[at] ^ 1]) + mark[at + 1 :] for at in range(len(mark))]
    for number, damaged in enumerate([*flipped, b"", mark[:7], bytes(len(mark)), mark + mark, older]):
        place = crashed(meta, tmp_path / f"crashed-{number}")
        mark_file(place / meta.path.name).write_bytes(damaged)
        again = Harness(place)
        assert len(again.names(1)) == 2 * FILES + 1
        again.close()
    meta.close()
