"""What a data server leaves free of its disk, and when the disk is asked for it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataserver.room import PLENTY_BYTES, PLENTY_SECONDS, Purpose, Reserve

SIZE = 1000


class Disk:
    """A disk with so much free at such a time."""

    def __init__(self) -> None:
        self.free = 0
        self.seconds = 100.0
        self.asked = 0

    def fstatvfs(self, _: int) -> SimpleNamespace:
        self.asked += 1
        return SimpleNamespace(f_bavail=self.free, f_frsize=1)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(os, "fstatvfs", made.fstatvfs)
    monkeypatch.setattr(time, "monotonic", lambda: made.seconds)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[object]:
    with (tmp_path / "file").open("wb") as opened:
        yield opened


LEAST = {Purpose.PUT: SIZE + 10, Purpose.REPAIR: SIZE // 2 + 10, Purpose.PROMISE: 10}


@pytest.mark.parametrize(("purpose", "least"), LEAST.items())
def test_what_would_touch_the_reserve_is_refused(
    disk: Disk, file: object, purpose: Purpose, least: int
) -> None:
    reserve = Reserve(SIZE)
    disk.free = least
    reserve.require(file, 10, purpose)
    disk.free -= 1
    with pytest.raises(OSError, match="reserve") as caught:
        reserve.require(file, 10, purpose)
    assert caught.value.errno == errno.ENOSPC


def test_only_with_plenty_of_room_the_disk_is_asked_now_and_then(disk: Disk, file: object) -> None:
    reserve = Reserve(SIZE)
    for free, asked in ((SIZE + 10 + PLENTY_BYTES - 1, 5), (SIZE + 10 + PLENTY_BYTES, 1)):
        disk.free, disk.asked = free, 0
        for purpose in (Purpose.REPAIR, Purpose.PUT, Purpose.REPAIR, Purpose.PUT, Purpose.PUT):
            reserve.require(file, 10, purpose)
        assert disk.asked == asked
    disk.free = 0
    disk.seconds += PLENTY_SECONDS
    with pytest.raises(OSError, match="reserve"):
        reserve.require(file, 10, Purpose.REPAIR)
