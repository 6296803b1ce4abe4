"""What a start of the store on disk makes of what it finds: the index is only a cache of the segments."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dataserver import index, recovery, segment
from dataserver.__main__ import _open_store
from dataserver.index import Index
from dataserver.segment import segment_paths
from dataserver.segments import SegmentStore
from tests.unit.segment_support import (
    SMALL,
    abandon,
    block_id,
    check,
    content,
    damage_header,
    damage_payload,
    overwrite,
    put,
    remove_index,
)
from wire.config import ClusterConfig, ConfigError, DataServerConfig
from wire.digest import Buffer, block_digest
from wire.quorum import Quorum


def test_a_start_serves_what_is_there(directory: Path) -> None:
    for first in (0, 10, 20):
        store = SegmentStore(directory, segment_bytes=SMALL)
        put(store, *range(first, first + 10))
        store.close()
    store = SegmentStore(directory, segment_bytes=SMALL)
    check(store, *range(30))
    assert store.status()["damaged_regions"] == 0
    assert store.status()["segments"] > 3
    store.close()


def test_a_kill_loses_nothing_that_was_put(directory: Path, tmp_path: Path) -> None:
    store = SegmentStore(directory, segment_bytes=SMALL)
    put(store, *range(10))
    store.maintain()
    put(store, *range(10, 20))
    copy = SegmentStore(abandon(directory, tmp_path / "copy"))
    check(copy, *range(20))
    assert copy.status()["damaged_regions"] == 0
    copy.close()
    store.close()


def lose_index(directory: Path, older: Path) -> None:
    remove_index(directory)


def garble_index(directory: Path, older: Path) -> None:
    overwrite(directory / "index.sqlite", 4096, os.urandom(2000))


def empty_index(directory: Path, older: Path) -> None:
    (directory / "index.sqlite").write_bytes(b"")


def put_text_instead(directory: Path, older: Path) -> None:
    remove_index(directory)
    (directory / "index.sqlite").write_text("this is no database " * 500)


def put_older_index_back(directory: Path, older: Path) -> None:
    remove_index(directory)
    for file in older.glob("index.sqlite*"):
        shutil.copy(file, directory / file.name)


def change_index(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "index.sqlite")) as database, database:
        database.execute(statement)


def lose_rows(directory: Path, older: Path) -> None:
    change_index(directory, "DELETE FROM blocks WHERE length < 5000")


def move_a_row(directory: Path, older: Path) -> None:
    change_index(directory, "UPDATE blocks SET offset = offset + 4096")


def forget_segments(directory: Path, older: Path) -> None:
    change_index(directory, "DELETE FROM segments")


def newer_format(directory: Path, older: Path) -> None:
    change_index(directory, "UPDATE meta SET value = 99 WHERE name = 'format'")


@pytest.mark.parametrize(
    "harm",
    [
        lose_index,
        garble_index,
        empty_index,
        put_text_instead,
        put_older_index_back,
        lose_rows,
        move_a_row,
        forget_segments,
        newer_format,
    ],
)
def test_the_index_is_only_a_cache(
    directory: Path, tmp_path: Path, harm: Callable[[Path, Path], None]
) -> None:
    store = SegmentStore(directory, segment_bytes=SMALL)
    put(store, *range(20))
    store.maintain()
    older = abandon(directory, tmp_path / "older")
    store.delete([block_id(number) for number in (2, 3, 4, 11)])
    truth = content(5)
    damage_payload(store, 5)
    assert store.repair(block_id(5), block_digest(truth), truth, "test") == "replaced"
    put(store, *range(30, 40))
    store.close()
    harm(directory, older)
    store = SegmentStore(directory, segment_bytes=SMALL)
    left = [number for number in (*range(20), *range(30, 40)) if number not in (2, 3, 4, 11)]
    check(store, *left)
    put(store, 50)
    store.delete([block_id(0)])
    store.maintain()
    check(store, *left[1:], 50)
    store.close()
    store = SegmentStore(directory, segment_bytes=SMALL)
    check(store, *left[1:], 50)
    store.close()


def test_an_older_segment_put_back_is_scanned_anew(directory: Path, tmp_path: Path) -> None:
    store = SegmentStore(directory)
    put(store, *range(5))
    store.close()
    older = abandon(directory, tmp_path / "older")
    store = SegmentStore(directory)
    put(store, *range(5, 10))
    store.close()
    shutil.copy(older / "segments" / "00000000.seg", directory / "segments" / "00000000.seg")
    store = SegmentStore(directory)
    check(store, *range(5))
    put(store, 7)
    check(store, *range(5), 7)
    store.close()


def test_another_segment_under_the_same_name_is_scanned_anew(directory: Path, tmp_path: Path) -> None:
    for place, numbers in ((directory, range(5)), (tmp_path / "other", range(20, 40))):
        place.mkdir(exist_ok=True)
        store = SegmentStore(place)
        put(store, *numbers)
        store.close()
    shutil.copy(tmp_path / "other" / "segments" / "00000000.seg", directory / "segments" / "00000000.seg")
    store = SegmentStore(directory)
    check(store, *range(20, 40))
    store.close()


def test_a_lost_segment_costs_its_own_blocks_only(directory: Path) -> None:
    store = SegmentStore(directory, segment_bytes=SMALL)
    put(store, *range(20))
    victim = store.locate(block_id(8)).path
    lost = [number for number in range(20) if store.locate(block_id(number)).path == victim]
    store.close()
    victim.unlink()
    store = SegmentStore(directory, segment_bytes=SMALL)
    check(store, *(number for number in range(20) if number not in lost))
    put(store, *lost)
    check(store, *range(20))
    store.close()


def test_damage_stays_where_it_is_and_is_counted(directory: Path) -> None:
    store = SegmentStore(directory)
    put(store, *range(6))
    place = store.locate(block_id(2))
    damage_header(store, 2)
    store.close()
    raw = place.path.read_bytes()
    remove_index(directory)
    for _ in range(2):
        store = SegmentStore(directory)
        check(store, 0, 1, 3, 4, 5)
        assert store.status()["damaged_regions"] == 1
        store.close()
    assert place.path.read_bytes()[: len(raw)] == raw


def test_an_index_that_cannot_be_opened_is_made_anew(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that another user made, for himself only."""
    store = SegmentStore(directory)
    put(store, 1, 2)
    store.close()
    owners = (directory / "index.sqlite").stat().st_ino
    connect = sqlite3.connect

    def refuse(path: Path, **options: Any) -> sqlite3.Connection:
        if path.exists() and path.stat().st_ino == owners:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, **options)

    kept = (directory / "index.sqlite").open("rb")  # so that its number is not given to another file
    monkeypatch.setattr(sqlite3, "connect", refuse)
    started = SegmentStore(directory)
    check(started, 1, 2)
    started.close()
    kept.close()


class Killed(BaseException):
    """Stands for the end of the process at this very call."""


def test_a_later_start_does_not_append_behind_an_unfinished_write(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a payload and its header; as the index is lost too, the bytes stay where they are."""

    def killed(handle: int, data: Buffer, offset: int) -> None:
        raise Killed

    store = SegmentStore(directory)
    put(store, *range(3))
    with monkeypatch.context() as patch:
        patch.setattr(segment, "write_all", killed)
        patch.setattr(segment.Segment, "cut", lambda self, offset: None)
        with pytest.raises(Killed):
            put(store, 3)
    del store
    remove_index(directory)
    SegmentStore(directory).close()
    store = SegmentStore(directory)
    put(store, 3, 4)
    store.close()
    for _ in range(2):
        remove_index(directory)
        store = SegmentStore(directory)
        check(store, *range(5))
        assert store.status()["damaged_regions"] == 0
        store.close()


def test_no_bit_of_the_index_that_is_wrong_keeps_a_store_from_its_start(directory: Path) -> None:
    """Of what it says of the segments all is tried, of its tables' names and the rest some."""
    store = SegmentStore(directory)
    put(store, 1, 2)
    store.close()
    whole = (directory / "index.sqlite").read_bytes()
    with closing(sqlite3.connect(directory / "index.sqlite")) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'segments'").fetchone()
    of_segments = range((page - 1) * 4096, page * 4096)
    used = [at for at, byte in enumerate(whole) if byte]
    bits = [(at, bit) for at in used for bit in range(8) if at in of_segments or at % 8 == bit == 7]
    for at, bit in bits:
        remove_index(directory)
        (directory / "index.sqlite").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        store = SegmentStore(directory)
        check(store, 1, 2)
        assert store.status()["damaged_regions"] == 0, f"bit {bit} of byte {at}"
        put(store, 3)
        store.delete([block_id(3)])
        store.close()


def test_an_index_that_cannot_be_read_for_the_moment_is_told_in_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SegmentStore(directory).close()

    def fail(_: Index) -> dict[int, int]:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Index, "last_ends", fail)
    config = ClusterConfig(
        cluster="c",
        quorum=Quorum(1, 1, 1),
        mediator_listen="127.0.0.1:0",
        metaserver_listen="127.0.0.1:0",
        metaserver_directory=directory / "meta",
        data_servers=(DataServerConfig(1, "127.0.0.1:0", directory),),
    )
    with pytest.raises(ConfigError, match="disk I/O error; look at its rights and its disk"):
        _open_store(directory, config, lambda: None)


@pytest.mark.parametrize("step", ["scan", "_freed_since_saved"])
def test_an_index_that_is_damaged_during_a_start_is_made_anew(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between the look at all of it and its first use the disk may go bad."""
    store = SegmentStore(directory)
    put(store, *range(1000, 1200))
    store.maintain()
    put(store, *range(10))
    killed = abandon(directory, tmp_path / "killed")
    store.close()
    usual, prepare, damaged = getattr(recovery, step), index._prepare, []

    def prepare_without_memory(connection: sqlite3.Connection) -> None:
        prepare(connection)
        connection.execute("PRAGMA cache_size = 1")

    def damaging(*values: Any) -> Any:
        if not damaged:
            for file in killed.glob("index.sqlite*"):
                if not file.name.endswith("-shm"):
                    file.write_bytes(b"\xff" * file.stat().st_size)
            damaged.append(step)
        return usual(*values)

    monkeypatch.setattr(recovery, step, damaging)
    monkeypatch.setattr(index, "_prepare", prepare_without_memory)
    started = SegmentStore(killed)
    check(started, *range(10), *range(1000, 1200))
    started.close()


def test_damage_that_several_starts_find_is_counted_once(directory: Path) -> None:
    """Each of them scans what no sync has covered since."""
    store = SegmentStore(directory)
    put(store, 1, 2, 3)
    store.sync()
    damage_header(store, 2)
    store._index.close()  # a kill before the index was saved: the next start scans
    for _ in range(3):
        started = SegmentStore(directory)
        assert started.status()["damaged_regions"] == 1
        started._index.close()
    started = SegmentStore(directory)
    started.close()  # saves what is known
    for _ in range(2):
        again = SegmentStore(directory)
        assert again.status()["damaged_regions"] == 1
        again.close()


def test_segments_that_cannot_be_listed_are_not_taken_for_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where rights were taken away: a server that began empty would have all of them refilled."""
    store = SegmentStore(directory)
    put(store, *range(3))
    store.close()

    def refuse(path: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        for name in ("listdir", "scandir"):
            patched.setattr(os, name, refuse)
        with pytest.raises(PermissionError):
            SegmentStore(directory)
        with pytest.raises(PermissionError):
            segment_paths(directory / "segments")
    store = SegmentStore(directory)
    check(store, *range(3))
    store.close()
