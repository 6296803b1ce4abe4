"""A data server that is started anew after a sync of its disk has failed."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from dataserver import durable, segment
from dataserver.segments import SegmentStore
from tests.sim.disk import Disk
from tests.support import take_seed
from tests.unit.segment_support import SMALL, block_id, check, content, put
from wire.digest import block_digest
from wire.errors import InternalError

LIVES = 20
SHORT = [number for number in range(40) if len(content(number)) < segment.DIRECT_BYTES]


def test_what_a_failed_sync_left_out_is_durable_after_the_first_sync_of_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel can still read it, and takes it for written."""
    dice = random.Random(take_seed())
    failed = 0
    for life in range(LIVES):
        place = tmp_path / f"{life}"
        place.mkdir()
        disk = Disk(place, dice)
        for module in (durable, segment):
            monkeypatch.setattr(module, "os", disk)
        failing = SegmentStore(place, segment_bytes=SMALL)
        put(failing, *SHORT[:3])
        failing.maintain()
        put(failing, *SHORT[3:12])
        disk.syncs_fail = True
        try:
            failing.sync()
        except InternalError:
            failed += 1
        disk.syncs_fail = False
        failing._index.close()  # a kill

        started = SegmentStore(place, segment_bytes=SMALL)
        started.sync()
        missing = [number for number in SHORT[:12] if started.length(block_id(number)) is None]
        started._index.close()
        disk.names.clear()
        disk.lose_power()

        left = SegmentStore(place, segment_bytes=SMALL)
        for number in SHORT[:12]:
            if number not in missing:
                assert left.digest(block_id(number), 0, 0) == block_digest(content(number)), (life, number)
        left.close()
    assert failed > LIVES // 10


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_disk_that_refuses_every_write_is_asked_for_none_until_a_restart(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error that the kernel met: it may have given up what it had not written."""
    why = os.strerror(number)
    store = SegmentStore(tmp_path)
    put(store, SHORT[0])

    def refuse(*_: object) -> int:
        raise OSError(number, why)

    with monkeypatch.context() as failing:
        failing.setattr(durable.os, "pwrite", refuse)
        with pytest.raises(InternalError, match=why):
            put(store, SHORT[1])
    assert store.status()["disk_failure"] == why
    with pytest.raises(InternalError, match=why):
        put(store, SHORT[1])
    check(store, SHORT[0])
    store.close()
    again = SegmentStore(tmp_path)
    put(again, SHORT[1])
    check(again, *SHORT[:2])
    again.close()


@pytest.mark.parametrize("step", ["sync", "maintain"])
def test_a_segment_that_was_removed_counts_as_a_failed_disk(tmp_path: Path, step: str) -> None:
    """Nothing that is put into it would be there after a restart, though a sync of it succeeds."""
    store = SegmentStore(tmp_path, segment_bytes=SMALL)
    put(store, *SHORT[:9])
    store.sync()
    first, *_, last = sorted((tmp_path / "segments").iterdir())
    (last if step == "sync" else first).unlink()
    if step == "sync":
        put(store, SHORT[9])
    with pytest.raises(InternalError, match="was removed"):
        getattr(store, step)()
    with pytest.raises(InternalError, match="was removed"):
        put(store, SHORT[10])
    assert "was removed" in store.status()["disk_failure"]
    check(store, *SHORT[: 10 if step == "sync" else 9])  # others can still be filled from it
    store.close()
    again = SegmentStore(tmp_path, segment_bytes=SMALL)
    put(again, SHORT[10])
    again.sync()
    assert again.status()["disk_failure"] is None
    again.close()


def test_a_segment_that_the_store_removes_itself_is_no_failed_disk(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path, segment_bytes=SMALL)
    put(store, *SHORT[:9])
    store.sync()
    first = store._segments[0]
    store.delete([block_id(number) for number in SHORT[:9]])
    store.maintain()
    assert not first.path.exists()
    first.sync()  # as one that was under way
    assert store.status()["disk_failure"] is None
    store.close()


def test_names_of_an_open_file_are_counted(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    with file.open("wb") as opened:
        assert durable.count_links(opened.fileno()) == 1
        other.hardlink_to(file)
        assert durable.count_links(opened.fileno()) == 2
        file.unlink()
        other.unlink()
        assert durable.count_links(opened.fileno()) == 0
        closed = opened.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        durable.count_links(closed)
