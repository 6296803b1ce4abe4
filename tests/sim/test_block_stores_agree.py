"""Random operations on the store on disk and on the one in memory give the same answers, reopened or not."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataserver.memory import MemoryStore
from dataserver.segments import SegmentStore
from wire.digest import PIECE_BYTES, block_digest
from wire.errors import QuorumfsError

MEMORY = Path("/dev/shm")
"""Where temporary files are quick: a sync costs nothing there."""
NUMBERS = st.integers(0, 11)
VERSIONS = st.integers(0, 1)
LENGTHS = (0, 1, 5000, 4096, PIECE_BYTES, PIECE_BYTES + 1, 300_000)


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def content(number: int, version: int) -> bytes:
    length = LENGTHS[(number + version) % len(LENGTHS)]
    return random.Random(number * 10 + version).randbytes(length)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except QuorumfsError as error:
        return type(error)


class Stores(RuleBasedStateMachine):
    """The model is MemoryStore; damage is done to both."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.model = MemoryStore()
        self.open()

    def open(self) -> None:
        self.store = SegmentStore(self.directory, segment_bytes=200_000)

    def both(self, call: Callable[[Any], Any]) -> None:
        assert outcome(lambda: call(self.store)) == outcome(lambda: call(self.model))

    @rule(number=NUMBERS, version=VERSIONS)
    def put(self, number: int, version: int) -> None:
        data = content(number, version)
        self.both(lambda store: store.put(block_id(number), block_digest(data), data))

    @rule(number=NUMBERS, version=VERSIONS)
    def repair(self, number: int, version: int) -> None:
        data = content(number, version)
        self.both(lambda store: store.repair(block_id(number), block_digest(data), data, "test"))

    @rule(numbers=st.lists(NUMBERS, max_size=4))
    def delete(self, numbers: list[int]) -> None:
        self.both(lambda store: store.delete([block_id(number) for number in numbers]))

    @rule(number=NUMBERS, first=st.integers(0, 5), count=st.integers(0, 5))
    def read(self, number: int, first: int, count: int) -> None:
        self.both(lambda store: store.get(block_id(number), first, count)[0::2])
        self.both(lambda store: store.digest(block_id(number), first, count))

    @rule(after=NUMBERS, limit=st.integers(1, 20))
    def inventory(self, after: int, limit: int) -> None:
        self.both(lambda store: store.inventory(block_id(after), limit))

    @rule(number=NUMBERS)
    def damage(self, number: int) -> None:
        found = self.model.blocks.get(block_id(number))
        if found is None or not found[1]:
            return
        digest, data = found
        wrong = bytes([data[0] ^ 1]) + data[1:]
        self.store.maintain()
        place = self.store.locate(block_id(number))
        with place.path.open("r+b") as file:
            file.seek(place.payload_offset)
            file.write(wrong)
        self.model.blocks[block_id(number)] = (digest, wrong)

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule()
    def maintain(self) -> None:
        self.store.maintain()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def close_lose_the_index_and_open(self) -> None:
        self.store.close()
        for file in self.directory.glob("index.sqlite*"):
            file.unlink()
        self.open()

    @rule()
    def kill_and_open(self) -> None:
        """A kill may bring back blocks that were deleted since the last saving: so save first."""
        self.store.maintain()
        self.open()

    @invariant()
    def they_agree(self) -> None:
        assert self.store.inventory(b"", 100) == self.model.inventory(b"", 100)
        assert self.store.count() == self.model.count()
        told, expected = self.store.status(), self.model.status()
        assert told["bytes_live"] == expected["bytes_live"]
        assert told["damaged_regions"] == 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


def test_a_vote_on_pieces_beside_the_damaged_one() -> None:
    """A record keeps the digests of its pieces as they were put."""
    stores = Stores()
    try:
        stores.put(5, 0)
        stores.damage(5)
        stores.read(5, 1, 0)
        stores.read(5, 1, 1)
    finally:
        stores.teardown()


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
