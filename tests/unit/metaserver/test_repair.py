"""Repair: each damage that can be mended is mended, no bytes are given up, the rest is left and told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metaserver import pages
from metaserver.check import check
from metaserver.repair import repair
from tests.unit.metaserver.harness import DIRECTORY, LINK, Harness
from wire.messages import Extent

MENDED = {
    "root": "INSERT INTO entries VALUES (1, x'7a', 1)",
    "entry-directory": "INSERT INTO entries SELECT 999, x'61', ino FROM entries WHERE name = x'66'",
    "entry-inode": "INSERT INTO entries VALUES (1, x'7a', 999)",
    "file-links": "UPDATE inodes SET nlink = 2 WHERE nlink = 1",
    "directory-links": "UPDATE inodes SET nlink = 7 WHERE ino = 1",
    "directory-name": "UPDATE inodes SET parent = 99 WHERE parent = 1 AND ino != 1",
    "removed-directory": "UPDATE inodes SET nlink = 0 WHERE parent = 1 AND ino != 1",
    "tree": "UPDATE entries SET parent = ino WHERE name = x'64'",
    "inode-counter": "UPDATE counters SET next = 2 WHERE name = 'inode'",
    "symbolic-links": "UPDATE inodes SET size = 77 WHERE target IS NOT NULL",
    "extent-size": "UPDATE inodes SET size = 3 WHERE size = 950",
    "allocated-bytes": "UPDATE inodes SET allocated_bytes = 1",
    "block-references": "UPDATE blocks SET refs = 3",
    "garbage": "INSERT INTO garbage SELECT block, length, 0 FROM blocks",
    "xattr-inode": "INSERT INTO xattrs VALUES (999, x'61', x'61')",
    "slot-session": "INSERT INTO slots VALUES (999, 0, 1, x'')",
    "session-counter": "UPDATE counters SET next = 1 WHERE name = 'session'",
    "orphans": "INSERT INTO inodes SELECT 900, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, NULL FROM inodes"
    " WHERE size = 950",
}
LEFT = {
    "extent-overlap": "UPDATE extents SET length = 600 WHERE offset = 0",
    "extent-block": "UPDATE extents SET block_offset = 999",
    "names": "UPDATE entries SET name = x'2E2E' WHERE name = x'66'",
    "block-records": "UPDATE blocks SET digest = x'00'",
}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The database of: d/ (with g in it), f (500 bytes, a hole, 400 bytes) and a symbolic link l."""
    meta = Harness(tmp_path)
    directory = meta.create(1, b"d", DIRECTORY)
    meta.create(directory.ino, b"g")
    meta.create(1, b"l", LINK, target=b"to")
    file = meta.create(1, b"f")
    record = meta.new_block(1000)
    meta.commit(
        file.ino, Extent(0, 500, record.block, 0), Extent(550, 400, record.block, 600), blocks=[record]
    )
    meta.service.close_session(meta.session)
    meta.close()
    with closing(pages.connect(tmp_path / "meta.sqlite", isolation_level=None)) as opened:
        yield opened


def contents(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT * FROM extents ORDER BY ino, offset").fetchall()


def test_nothing_is_done_where_nothing_is_wrong(connection: sqlite3.Connection) -> None:
    before = list(connection.iterdump())
    assert repair(connection) == []
    assert list(connection.iterdump()) == before


@pytest.mark.parametrize("name", MENDED)
def test_each_damage_is_mended_and_no_contents_are_lost(connection: sqlite3.Connection, name: str) -> None:
    before = contents(connection)
    connection.execute(MENDED[name])
    assert name in {finding.check for finding in check(connection)}
    done = repair(connection)
    assert name in {action.check for action in done}
    assert check(connection) == []
    assert contents(connection) == before
    assert repair(connection) == []


@pytest.mark.parametrize("name", LEFT)
def test_what_could_only_be_guessed_is_left(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(LEFT[name])
    repair(connection)
    assert {finding.check for finding in check(connection)} >= {name}


def lost_and_found(connection: sqlite3.Connection) -> dict[bytes, int]:
    rows = connection.execute(
        "SELECT name, ino FROM entries WHERE parent = (SELECT ino FROM entries WHERE name = ?)",
        (b"lost+found",),
    )
    return dict(rows.fetchall())


def test_files_and_directories_without_a_name_are_found_again(connection: sqlite3.Connection) -> None:
    inodes = dict(connection.execute("SELECT name, ino FROM entries").fetchall())
    connection.execute("DELETE FROM entries WHERE name IN (x'66', x'64')")
    repair(connection)
    assert check(connection) == []
    assert set(lost_and_found(connection).values()) == {inodes[b"f"], inodes[b"d"]}
    assert connection.execute("SELECT parent FROM entries WHERE name = x'67'").fetchone() == (inodes[b"d"],)


def test_contents_whose_inode_is_lost_become_a_file_again(connection: sqlite3.Connection) -> None:
    before = contents(connection)
    connection.execute("DELETE FROM inodes WHERE size = 950")
    connection.execute("DELETE FROM entries WHERE name = x'66'")
    repair(connection)
    assert check(connection) == []
    assert contents(connection) == before
    assert len(lost_and_found(connection)) == 1


def test_a_block_that_no_file_refers_to_becomes_a_file(connection: sqlite3.Connection) -> None:
    ((block,),) = connection.execute("SELECT block FROM blocks").fetchall()
    connection.execute("DELETE FROM extents")
    repair(connection)
    assert check(connection) == []
    assert list(lost_and_found(connection)) == [b"block-" + block.hex().encode()]
    assert connection.execute("SELECT count(*) FROM garbage").fetchone() == (0,)


def test_nobody_lacks_a_block_any_more_that_is_garbage(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO lag SELECT block, 1 FROM blocks")
    connection.execute("DELETE FROM entries WHERE name = x'66'")
    connection.execute("UPDATE inodes SET nlink = 0 WHERE size = 950")
    assert "orphans" in {action.check for action in repair(connection)}
    assert connection.execute("SELECT count(*) FROM garbage").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM lag").fetchone() == (0,), "it would be at risk for ever"


def test_a_database_that_knows_no_lag_is_repaired(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE lag")
    connection.execute(MENDED["orphans"])
    assert repair(connection)
    assert check(connection) == []


def test_a_ring_of_directories_is_opened(connection: sqlite3.Connection) -> None:
    (d,) = connection.execute("SELECT ino FROM entries WHERE name = x'64'").fetchone()
    connection.execute("UPDATE inodes SET mode = 0x41ed, nlink = 2, parent = ? WHERE ino = ?", (d, d + 1))
    connection.execute("UPDATE entries SET parent = ? WHERE ino = ?", (d + 1, d))
    repair(connection)
    assert check(connection) == []
    assert list(lost_and_found(connection).values()) == [d]
