"""A read that is kept open between transactions: it must end wherever it would be in the way."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metaserver import log as log_module
from metaserver import pages, store
from metaserver.check import snapshot
from metaserver.log import Checkpointer
from metaserver.log_ahead import LogAhead
from tests.unit.metaserver.harness import Harness
from wire.errors import InternalError, InvalidArgument, NoSpace

IOERR_WRITE, FULL = 10 | 3 << 8, 13


def can_empty_the_log(meta: Harness) -> bool:
    """Tell whether another connection can; it does, then."""
    with closing(pages.connect(meta.path, isolation_level=None, timeout=0)) as other:
        (busy, *_), *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy


def test_a_read_is_kept_open_and_sees_all_changes(meta: Harness) -> None:
    ino = meta.create(1, b"first").ino
    assert not can_empty_the_log(meta)
    meta.create(1, b"second")
    assert meta.names(1) == [b"first", b"second"]
    with pytest.raises(InternalError):
        meta.store.change(meta.store.execute, "no statement")
    assert can_empty_the_log(meta), "a failed call must end the reading"
    assert meta.service.getattr(ino).ino == ino
    meta.create(1, b"third")
    assert not can_empty_the_log(meta)
    meta.store.end_reading()
    assert can_empty_the_log(meta)


def test_emptying_the_log_does_not_wait_for_who_reads_an_older_moment(meta: Harness) -> None:
    """A check or a copy of a large database takes long, and the server answers nobody meanwhile."""
    meta.create(1, b"first")
    with closing(snapshot(meta.path)):
        begun = time.monotonic()
        meta.store.empty_log()
        meta.create(1, b"second")
        meta.store.empty_log()
        assert time.monotonic() - begun < store.CHECKPOINT_TRIES * store.CHECKPOINT_RETRY_SECONDS
    meta.store.empty_log()
    assert not Path(f"{meta.path}-wal").stat().st_size


def test_a_log_that_cannot_be_moved_by_the_thread_is_kept_short_by_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "CHECKPOINT_ROWS", 50)
    for module in (store, log_module):
        monkeypatch.setattr(module, "LOG_PAGES_MAX", 100)
    meta = Harness(tmp_path)
    checkpointer = Checkpointer(meta.store)

    def fail(_self: Checkpointer) -> None:
        raise sqlite3.OperationalError("no")

    with monkeypatch.context() as failing:
        failing.setattr(Checkpointer, "_checkpoint", fail)
        for number in range(200):
            meta.create(1, b"%d" % number)
            try:
                meta.wait(checkpointer.run_once())
            except sqlite3.OperationalError:
                continue
    assert Path(f"{meta.path}-wal").stat().st_size < 3 * 100 * pages.PAGE_BYTES
    assert can_empty_the_log(meta), "no read is kept open until the thread succeeds"
    assert meta.wait(checkpointer.run_once())
    assert not meta.wait(checkpointer.run_once())
    meta.create(1, b"more")
    assert not can_empty_the_log(meta)
    checkpointer.close()
    meta.close()


def test_a_log_that_is_too_long_is_moved_by_a_commit_though_a_read_was_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store, log_module):
        monkeypatch.setattr(module, "LOG_PAGES_MAX", 100)
    meta = Harness(tmp_path)
    checkpointer = Checkpointer(meta.store)  # which has its turn, but does not find enough to move
    for number in range(200):
        meta.create(1, b"%d" % number)
        assert not meta.wait(checkpointer.run_once())
    assert Path(f"{meta.path}-wal").stat().st_size < 2 * 100 * pages.PAGE_BYTES
    checkpointer.close()
    meta.close()


def test_a_disk_that_fails_once_does_not_end_the_job_that_keeps_the_log_short(
    meta: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer, turns = Checkpointer(meta.store), 0

    async def until_it_goes_on() -> None:
        went_on = asyncio.Event()

        def look(_ahead: LogAhead) -> None:
            nonlocal turns
            turns += 1
            if turns == 1:
                raise OSError(5, "Input/output error")
            went_on.set()

        monkeypatch.setattr(LogAhead, "look", look)
        job = asyncio.create_task(checkpointer.run_forever(0.001))
        going_on = asyncio.create_task(went_on.wait())
        await asyncio.wait({job, going_on}, return_when=asyncio.FIRST_COMPLETED)
        assert not job.done()
        job.cancel()

    meta.wait(until_it_goes_on())
    checkpointer.close()
    assert "Input/output error" in caplog.text


def test_totals_are_right_after_a_change_that_could_not_even_be_taken_back(
    meta: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, execute = meta.store.totals.copy(), meta.store.execute

    def fail(statement: str, *values: Any) -> sqlite3.Cursor:
        done = execute(statement, *values)
        if statement == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        return done

    def half_a_change() -> None:
        meta.store.totals["blocks"] += 1
        raise InvalidArgument("no")

    monkeypatch.setattr(meta.store, "execute", fail)
    with pytest.raises(InvalidArgument):
        meta.store.change(half_a_change)
    assert meta.store.totals == before


@pytest.fixture
def failing_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The next writes to logs fail with these results of SQLite's."""
    results: list[int] = []
    hooked = pages._hooked_log

    def put_on(log: bytes, usual: Any) -> Any:
        usual_write = pages._Transfer(usual.write)

        def write(file: int, buffer: int, length: int, offset: int) -> int:
            return results.pop() if results else int(usual_write(file, buffer, length, offset))

        return hooked(log, pages._with_hooks(usual, {"write": pages._Transfer(write)}))

    monkeypatch.setattr(pages, "_hooked_log", put_on)
    yield results
    assert not results, "not as many writes as should have failed"


def test_after_a_write_of_the_log_that_failed_the_next_call_succeeds(
    tmp_path: Path, failing_writes: list[int]
) -> None:
    meta = Harness(tmp_path)
    before = meta.create(1, b"before")
    failing_writes.append(IOERR_WRITE)
    with pytest.raises(InternalError):
        meta.create(1, b"not made")
    assert meta.service.getattr(before.ino) == before
    assert meta.service.status()["disk_failure"] == "disk I/O error"
    failing_writes.append(FULL)
    meta.create(1, b"made at the second try")
    assert meta.service.status()["disk_failure"] is None
    failing_writes += [FULL, FULL]
    with pytest.raises(NoSpace):
        meta.create(1, b"not made")
    assert meta.service.status()["disk_failure"] is None
    meta.create(1, b"made after that")
    assert meta.names(1) == [b"before", b"made after that", b"made at the second try"]
    meta.close()
