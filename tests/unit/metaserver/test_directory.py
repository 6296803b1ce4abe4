"""What is on disk: directories that must be refused, the log's durability, checkpoints, rules of check.py."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from metaserver import log as log_module
from metaserver import pages
from metaserver.check import CHECKS, check
from metaserver.directory import Directory
from metaserver.log import Checkpointer, LogSync
from metaserver.store import Store
from tests.unit.metaserver.harness import DIRECTORY, Harness
from wire.config import ConfigError
from wire.errors import InternalError
from wire.messages import Extent


def begin(path: Path, cluster: str = "test") -> None:
    """Start and stop on a directory, as the process does."""
    directory = Directory(path, cluster)
    try:
        store = Store(directory.database, cluster, complete=directory.complete)
        store.close()
        directory.describe()
    finally:
        directory.close()


def refusal(path: Path, cluster: str = "test") -> str:
    with pytest.raises(ConfigError) as caught:
        begin(path, cluster)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_is_made_and_found_again(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "meta"
    begin(place)
    begin(place)
    assert json.loads((place / "server.json").read_text())["kind"] == "metaserver"
    assert sorted(path.name for path in place.iterdir()) == [
        "meta.sqlite",
        "meta.sqlite-mark",
        "meta.sqlite-sums",
        "server.json",
    ]


def test_one_process_a_directory(tmp_path: Path) -> None:
    directory = Directory(tmp_path, "test")
    assert "another metadata server" in refusal(tmp_path)
    directory.close()
    begin(tmp_path)


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    assert "belongs to" in refusal(tmp_path, "other")
    description = tmp_path / "server.json"
    description.unlink()
    assert "belongs to cluster 'test'" in refusal(tmp_path, "other")
    begin(tmp_path)
    whole = json.loads(description.read_text())
    for changes, expected in (
        ({"format": 99}, "format 99, this release reads 2 only; use the release that made it"),
        ({"kind": "dataserver"}, "belongs to the dataserver"),
    ):
        description.write_text(json.dumps({**whole, **changes}))
        assert expected in refusal(tmp_path)
    description.write_text("{")
    assert "damaged" in refusal(tmp_path)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    with pages.connect(tmp_path / "meta.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    said = refusal(tmp_path)
    assert "format 99" in said and "use the release that made it" in said


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut", "foreign", "no root"])
def test_a_damaged_database_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    begin(tmp_path)
    database = tmp_path / "meta.sqlite"
    if damage == "missing":
        database.unlink()
    elif damage == "empty":
        database.write_bytes(b"")
    elif damage == "garbage":
        database.write_bytes(b"garbage!" * 4096)
    elif damage == "cut":
        os.truncate(database, 4096 * 3)
    else:
        with pages.connect(database) as connection:
            statement = "DELETE FROM inodes" if damage == "no root" else "PRAGMA application_id = 5"
            connection.execute(statement)
        connection.close()
    before = database.read_bytes() if database.exists() else None
    refusal(tmp_path)
    assert (database.read_bytes() if database.exists() else None) == before


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be used" in refusal(tmp_path / "file" / "meta")


def test_callers_share_a_sync(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(log_module.os, "fdatasync", calls.append)

    async def ask() -> None:
        await asyncio.gather(*(meta.service.sync_metadata() for _ in range(50)))

    meta.wait(ask())
    assert 1 <= len(calls) <= 2
    meta.wait(meta.service.sync_metadata())
    assert len(calls) <= 3


def test_a_durable_commit_waits_for_the_disk(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(log_module.os, "fdatasync", calls.append)
    file = meta.create(1, b"a")
    meta.commit(file.ino, cut=0)
    assert calls == []
    meta.commit(file.ino, cut=0, durable=True)
    assert len(calls) == 1


def test_a_failed_sync_is_never_forgotten(
    meta: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log_module.os, "fdatasync", fail)
    with pytest.raises(InternalError):
        meta.wait(meta.service.sync_metadata())
    monkeypatch.undo()
    with pytest.raises(InternalError):
        meta.wait(meta.service.sync_metadata())
    assert "could not be made durable" in caplog.text


def test_the_log_starts_over_after_a_checkpoint(meta: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "CHECKPOINT_ROWS", 50)
    checkpointer = Checkpointer(meta.store)
    log = Path(f"{meta.path}-wal")
    sizes = []
    for number in range(40):
        meta.create(1, b"%d" % number)
        meta.wait(checkpointer.run_once())
        sizes.append(log.stat().st_size)
    checkpointer.close()
    assert sizes[-1] == sizes[20], "the log grew, although it was checkpointed"


def test_the_log_is_opened_beside_a_database_that_was_only_read(tmp_path: Path) -> None:
    for _ in range(2):
        store = Store(tmp_path / "meta.sqlite", "test")
        log = LogSync(tmp_path / "meta.sqlite", store.changed_rows, store.log_mark)
        asyncio.run(log.sync())
        log.close()
        store.close()


DAMAGES = {
    "root": "UPDATE inodes SET parent = 5",
    "entry-directory": "INSERT INTO entries VALUES (999, x'61', 2)",
    "entry-inode": "INSERT INTO entries VALUES (1, x'7a', 999)",
    "names": ("UPDATE entries SET name = x'2E2E' WHERE ino = 2"),
    "file-links": "UPDATE inodes SET nlink = 2 WHERE nlink = 1",
    "directory-links": "UPDATE inodes SET nlink = 7 WHERE ino = 1",
    "directory-name": "UPDATE inodes SET parent = 99 WHERE parent = 1 AND ino != 1",
    "removed-directory": "UPDATE inodes SET nlink = 0 WHERE parent = 1 AND ino != 1",
    "tree": (
        "UPDATE entries SET parent = ino WHERE ino = (SELECT ino FROM inodes WHERE parent = 1 AND ino != 1)"
    ),
    "inode-counter": "UPDATE counters SET next = 2 WHERE name = 'inode'",
    "symbolic-links": "UPDATE inodes SET target = x'61'",
    "extent-size": "UPDATE inodes SET size = 3",
    "extent-overlap": "UPDATE extents SET length = 600 WHERE offset = 0",
    "extent-block": "UPDATE extents SET block_offset = 999",
    "allocated-bytes": "UPDATE inodes SET allocated_bytes = 1",
    "block-references": "UPDATE blocks SET refs = 3",
    "block-records": "UPDATE blocks SET digest = x'00'",
    "garbage": "INSERT INTO garbage SELECT block, length, 0 FROM blocks",
    "xattr-inode": "INSERT INTO xattrs VALUES (999, x'61', x'61')",
    "slot-session": "INSERT INTO slots VALUES (999, 0, 1, x'')",
    "session-counter": "UPDATE counters SET next = 1 WHERE name = 'session'",
    "orphans": "UPDATE inodes SET nlink = 0 WHERE ino = (SELECT max(ino) FROM inodes)",
}


def test_every_check_has_its_damage() -> None:
    assert DAMAGES.keys() == {each.name for each in CHECKS}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_check_finds_its_damage(tmp_path: Path, name: str) -> None:
    meta = Harness(tmp_path)
    meta.create(1, b"dir", DIRECTORY)
    file = meta.create(1, b"file")
    record = meta.new_block(1000)
    meta.commit(
        file.ino, Extent(0, 500, record.block, 0), Extent(550, 400, record.block, 600), blocks=[record]
    )
    meta.service.close_session(meta.session)
    meta.close()
    connection = pages.connect(tmp_path / "meta.sqlite")
    assert check(connection) == []
    connection.execute(DAMAGES[name])
    assert name in {finding.check for finding in check(connection)}
    connection.close()
