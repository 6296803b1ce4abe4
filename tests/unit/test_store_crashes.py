"""A store that ends at any byte of any write opens again: what was there is right, the torn put is absent."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataserver.record import HEADER_BYTES, PAGE_BYTES
from dataserver.segments import SegmentStore
from tests.support import take_seed
from wire.digest import block_digest
from wire.errors import BlockMissing

ROOT = Path(__file__).resolve().parents[2]
EARLIER = 3


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def content(number: int, length: int) -> bytes:
    return random.Random(number).randbytes(length)


def put(store: SegmentStore, number: int, length: int) -> None:
    data = content(number, length)
    store.put(block_id(number), block_digest(data), data)


def is_good(store: SegmentStore, number: int, length: int) -> bool:
    return store.get(block_id(number), 0, 0).data == content(number, length) and store.digest(
        block_id(number), 0, 0
    ) == block_digest(content(number, length))


class Written:
    """A store's directory before and after one put, and the bytes that the put wrote."""

    def __init__(self, place: Path, length: int, *, with_index: bool, ahead: bool = False) -> None:
        self.directory, self.length, self.with_index = place / "data", length, with_index
        self.ahead = ahead
        self.directory.mkdir()
        store = SegmentStore(self.directory)
        for number in range(EARLIER):
            put(store, number, 700)
        store.maintain()
        if ahead:
            store.write_ahead()
        self.before = place / "before"
        shutil.copytree(self.directory, self.before)
        put(store, EARLIER, length)
        where = store.locate(block_id(EARLIER))
        self.offset = where.header_offset
        self.header = where.path.read_bytes()[self.offset : self.offset + PAGE_BYTES]
        self.payload = content(EARLIER, length)
        store.close()
        shutil.rmtree(self.directory)
        shutil.copytree(self.before, self.directory)

    def open_with(self, pieces: list[tuple[int, bytes]]) -> SegmentStore:
        """Open the directory as it was before the put, with only these bytes of it written."""
        segment = self.directory / "segments" / "00000000.seg"
        shutil.copy(self.before / "segments" / segment.name, segment)
        for file in self.directory.glob("index.sqlite*"):
            file.unlink()
        if self.with_index:
            for file in self.before.glob("index.sqlite*"):
                shutil.copy(file, self.directory / file.name)
        with segment.open("r+b") as file:
            for offset, written in pieces:
                file.seek(self.offset + offset)
                file.write(written)
        return SegmentStore(self.directory)

    def check(self, pieces: list[tuple[int, bytes]], *, complete: bool) -> None:
        """What is opened has the earlier blocks; the torn one is absent or right; all goes on from there."""
        store = self.open_with(pieces)
        present = store.length(block_id(EARLIER)) is not None
        assert present == complete
        assert store.count() == EARLIER + present
        for number in range(EARLIER):
            assert is_good(store, number, 700)
        if present:
            assert is_good(store, EARLIER, self.length)
        else:
            with pytest.raises(BlockMissing):
                store.digest(block_id(EARLIER), 0, 0)
        put(store, EARLIER, self.length)
        put(store, EARLIER + 1, 5000)
        store.close()
        for file in self.directory.glob("index.sqlite*"):
            file.unlink()
        store = SegmentStore(self.directory)
        assert store.count() == EARLIER + 2
        assert is_good(store, EARLIER, self.length) and is_good(store, EARLIER + 1, 5000)
        for number in range(EARLIER):
            assert is_good(store, number, 700)
        store.close()
        for path in (self.directory / "segments").iterdir():
            if path.name != "00000000.seg":
                path.unlink()


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A directory in memory: these tests open thousands of stores, and lose no power."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield place
    shutil.rmtree(place)


WAYS = {
    "with its index": (True, False),
    "without index": (False, False),
    "zeros ahead, with its index": (True, True),
    "zeros ahead, without index": (False, True),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def written(
    request: pytest.FixtureRequest, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Written]:
    """Makes a `Written`. Few zeros, as they are copied each time; some writes reach past them."""
    with_index, ahead = request.param
    monkeypatch.setattr("dataserver.segment.AHEAD_BYTES", 4 * PAGE_BYTES)
    return lambda length: Written(quick_path, length, with_index=with_index, ahead=ahead)


def test_killed_at_every_byte_of_a_write(written: Callable[[int], Written]) -> None:
    """The writes of a put in their order (payload, then header), ended after each byte."""
    case = written(300)
    step = 3 if case.with_index else 7
    for size in range(0, len(case.payload) + 1, step):
        case.check([(PAGE_BYTES, case.payload[:size])], complete=False)
    whole = [(PAGE_BYTES, case.payload)]
    for size in range(0, HEADER_BYTES, step):
        case.check([*whole, (0, case.header[:size])], complete=False)
    case.check([*whole, (0, case.header[:HEADER_BYTES])], complete=True)
    case.check([*whole, (0, case.header)], complete=True)


def test_power_lost_while_a_write_was_on_its_way(written: Callable[[int], Written]) -> None:
    """The disk may get a header without its payload's pages. Without its index a copy may show as corrupt."""
    case = written(9000)
    for size in range(0, len(case.payload), 500):
        pieces = [(0, case.header), (PAGE_BYTES, case.payload[:size])]
        if case.with_index or not case.ahead:
            case.check(pieces, complete=False)
        if case.with_index:
            padded = case.payload[:size] + bytes(len(case.payload) - size)
            case.check([(0, case.header), (PAGE_BYTES, padded)], complete=False)


def test_a_torn_copy_without_index_loses_the_vote(tmp_path: Path) -> None:
    case = Written(tmp_path, 9000, with_index=False)
    store = case.open_with([(0, case.header), (PAGE_BYTES, case.payload[:4096] + bytes(4904))])
    assert store.digest(block_id(EARLIER), 0, 0) != block_digest(case.payload)
    put(store, EARLIER, 9000)
    assert is_good(store, EARLIER, 9000)
    store.close()


def test_a_larger_write_cut_at_every_page(written: Callable[[int], Written]) -> None:
    case = written(300_000)
    for size in range(0, len(case.payload), 4096):
        case.check([(PAGE_BYTES, case.payload[:size])], complete=False)
        if case.with_index or not case.ahead:
            case.check([(0, case.header), (PAGE_BYTES, case.payload[:size])], complete=False)


PUTTER = """
import random, sys
from pathlib import Path
from dataserver.segments import SegmentStore
from wire.digest import block_digest
store = SegmentStore(Path(sys.argv[1]), segment_bytes=2_000_000)
number = int(sys.argv[2])
while True:
    data = random.Random(number).randbytes([100, 5000, 70_000, 1_000_000][number % 4])
    block = number.to_bytes(16, "big")
    store.put(block, block_digest(data), data)
    if number % 7 == 0:
        store.maintain()
    if number % 4 == 1:
        store.sync()
        store.write_ahead()
    if number % 5 == 0:
        store.delete([(number - 3).to_bytes(16, "big")])
    if number % 11 == 0:
        store.repair(block, block_digest(b"other"), b"other", "test")
        store.repair(block, block_digest(data), data, "test")
    print(number, flush=True)
    number += 1
"""


def test_a_process_that_puts_is_killed_again_and_again(tmp_path: Path) -> None:
    """Real kills at moments that nobody chose; every put that was answered is there and right."""
    seed = take_seed()
    dice = random.Random(seed)
    first = begin = 5
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", PUTTER, str(tmp_path), str(first)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(dice.randrange(1, 25)):
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        last = int(rest[-1]) if rest else last
        process.stdout.close()
        process.wait()
        if dice.random() < 0.3:
            for file in tmp_path.glob("index.sqlite*"):
                file.unlink()
        check_killed(tmp_path, begin, last)
        first = last + 1


def check_killed(directory: Path, begin: int, last: int) -> None:
    """All answered puts are good; the one in flight, number last + 1, is absent, good or half repaired."""
    store = SegmentStore(directory, segment_bytes=2_000_000)
    present = {int.from_bytes(record.block, "big") for record in store.inventory(b"", 4096)}
    for number in range(begin, last + 1):
        deleted = (number + 3) % 5 == 0
        assert number in present or deleted, f"block {number} was answered and is gone"
    for number in present:
        data = content(number, [100, 5000, 70_000, 1_000_000][number % 4])
        vote = store.digest(block_id(number), 0, 0)
        half_repaired = number == last + 1 and vote == block_digest(b"other")
        assert vote == block_digest(data) or half_repaired, number
        if half_repaired:
            store.repair(block_id(number), block_digest(data), data, "test")
    assert store.status()["damaged_regions"] == 0
    store.close()
