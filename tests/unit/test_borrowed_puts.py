"""Blocks put from memory that a mediator lends, and uses for others before they are written."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataserver.segment import DIRECT_BYTES
from dataserver.segments import SegmentStore
from wire.digest import BLOCK_BYTES, block_digest
from wire.errors import DigestMismatch
from wire.lending import LEAST_BYTES, Borrowed, Lender, is_as_lent

BLOCK, OTHER = b"b" * 16, b"o" * 16


class Rig:
    """A lender with one slot, and one who has borrowed its memory."""

    def __init__(self) -> None:
        self.lender = Lender(1)
        here, there = socket.socketpair(socket.AF_UNIX)
        with here, there:
            self._borrowed = Borrowed(here, self.lender.offer)

    def lend(self, data: bytes) -> memoryview:
        """Return bytes as the borrower sees them. The lender waits no longer: the slot is free."""
        view = self.lender.take(len(data))
        assert view is not None
        view[:] = data
        place = self.lender.place_of(view)
        assert place is not None
        return self._borrowed.at(place[2:])


def block_of(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    (tmp_path / "data").mkdir()
    made = SegmentStore(tmp_path / "data")
    yield made
    made.close()


def use_again_before(patched: pytest.MonkeyPatch, name: str, use: Callable[[], object]) -> None:
    """Have something done before each call of a function of `os`."""
    real = getattr(os, name)

    def write(*arguments: Any) -> int:
        use()
        return real(*arguments)

    patched.setattr(os, name, write)


@pytest.mark.parametrize(
    ("length", "call"),
    [(LEAST_BYTES, "pwrite"), (DIRECT_BYTES + 1, "pwrite"), (BLOCK_BYTES, "pwritev")],
)
@pytest.mark.parametrize("repairs", [False, True])
def test_a_record_of_memory_that_was_used_again_is_not_taken(
    store: SegmentStore, tmp_path: Path, length: int, call: str, repairs: bool
) -> None:
    rig, data, other = Rig(), block_of(length), bytes(LEAST_BYTES)
    store.put(OTHER, block_digest(data), data)
    lent = rig.lend(data)
    with pytest.MonkeyPatch.context() as patched:
        use_again_before(patched, call, lambda: rig.lend(other))
        with pytest.raises(DigestMismatch, match="used for other bytes"):
            if repairs:
                store.repair(BLOCK, block_digest(data), lent, "test")
            else:
                store.put(BLOCK, block_digest(data), lent)
    assert store.length(BLOCK) is None
    store.sync()
    left = SegmentStore(shutil.copytree(tmp_path / "data", tmp_path / "left"))
    for each in (store, left):
        assert each.status()["damaged_regions"] == 0
        each.put(BLOCK, block_digest(data), rig.lend(data))
        assert each.digest(BLOCK, 0, 0) == each.digest(OTHER, 0, 0) == block_digest(data)
    left.close()


def test_what_was_lent_is_told_from_what_is_there_now() -> None:
    rig = Rig()
    data = block_of(LEAST_BYTES)
    first = rig.lend(data)
    assert is_as_lent(first) and is_as_lent(data) and is_as_lent(memoryview(data))
    second = rig.lend(data)
    assert bytes(first) == bytes(second) == data
    assert is_as_lent(second) and not is_as_lent(first)
