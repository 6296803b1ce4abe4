"""A data server's background work on a disk that frees nothing: told in one line, and tried again."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import dataserver.segment
import dataserver.service
from dataserver import durable
from dataserver.block_rings import BlockRings
from dataserver.marks import Milestones, ScrubMark
from dataserver.quarantine import Quarantine
from dataserver.segments import SegmentStore
from dataserver.service import DataService
from tests.unit.segment_support import SMALL, block_id, put
from wire.messages import Identity

DEADLINE_SECONDS = 10.0


class StubbornDisk:
    """While it is failing, no hole can be punched."""

    def __init__(self) -> None:
        self.failing = False

    def punch_hole(self, handle: int, offset: int, length: int) -> bool:
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return durable.punch_hole(handle, offset, length)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_failure_is_told_once_without_a_traceback_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = StubbornDisk()
    monkeypatch.setattr(dataserver.segment, "punch_hole", disk.punch_hole)
    monkeypatch.setattr(dataserver.service, "MAINTAIN_SECONDS", 0.005)
    store = SegmentStore(tmp_path, segment_bytes=SMALL)
    service = DataService(
        store,
        Identity("dataserver", "test", 1, 1),
        ScrubMark(tmp_path),
        Milestones(tmp_path),
        Quarantine(tmp_path / "q", 1, 1.0),
        BlockRings(tmp_path, store),
    )
    tries = 0
    maintain = store.maintain

    def count_tries() -> None:
        nonlocal tries
        tries += 1
        maintain()

    store.maintain = count_tries  # type: ignore[method-assign]

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.levelno >= logging.ERROR]

    async def delete_on_a_failing_disk(number: int) -> None:
        before, tried = len(told()), tries
        disk.failing = True
        await service.delete([block_id(number)])
        await until(lambda: tries > tried + 3)
        assert len(told()) == before + 1
        disk.failing = False
        await until(lambda: not store._index.freed(1))
        healed = tries
        await until(lambda: tries > healed)

    async def scenario() -> None:
        work = asyncio.create_task(service.maintain_for_ever())
        await delete_on_a_failing_disk(1)
        await delete_on_a_failing_disk(2)
        assert not work.done()
        work.cancel()

    put(store, *range(5))
    asyncio.run(scenario())
    assert all("the disk failed in the background" in record.getMessage() for record in told())
    assert not any(record.exc_info for record in told()), "a traceback"
    service.close()
    store.close()
