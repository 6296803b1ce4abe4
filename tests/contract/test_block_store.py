"""What every block store does, held against both: in memory, and in segments on disk."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataserver.block_rings import BlockRings
from dataserver.contract import INVENTORY_LIMIT, BlockStore
from dataserver.marks import Milestones, ScrubMark
from dataserver.memory import MemoryStore
from dataserver.quarantine import Quarantine
from dataserver.segments import SegmentStore
from dataserver.service import DataService
from wire.digest import BLOCK_BYTES, DIGEST_BYTES, PIECE_BYTES, block_digest, part_matches, piece_digests
from wire.errors import BadRequest, BlockConflict, BlockMissing, DigestMismatch, MessageTooLarge
from wire.messages import SMALL_BLOCK_BYTES, SMALL_FILES_AT_ONCE, BlockRecord, Identity, VotedPart

LENGTHS = [
    0,
    1,
    4095,
    4096,
    4097,
    PIECE_BYTES,
    PIECE_BYTES + 1,
    3 * PIECE_BYTES,
    BLOCK_BYTES - 1,
    BLOCK_BYTES,
]


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def some_bytes(length: int, seed: int = 0) -> bytes:
    return (b"%d:" % seed + bytes(range(256)) * (length // 256 + 1))[:length]


@pytest.fixture(params=["memory", "segments", "small segments"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockStore]:
    makers: dict[str, Callable[[], BlockStore]] = {
        "memory": MemoryStore,
        "segments": lambda: SegmentStore(tmp_path),
        "small segments": lambda: SegmentStore(tmp_path, segment_bytes=64 * 1024),
    }
    made = makers[request.param]()
    yield made
    made.close()


def room() -> memoryview:
    """Return memory that begins at a page, as what a caller lends does."""
    return memoryview(mmap.mmap(-1, BLOCK_BYTES))


def put(store: BlockStore, number: int, data: bytes) -> BlockRecord:
    record = BlockRecord(block_id(number), len(data), block_digest(data))
    store.put(record.block, record.digest, data)
    return record


@pytest.mark.parametrize("length", LENGTHS)
def test_what_was_put_is_got(store: BlockStore, length: int) -> None:
    data = some_bytes(length)
    record = put(store, 1, data)
    assert store.get(record.block, 0, 0) == (length, piece_digests(data), data)
    assert store.get(record.block, 0, 0, room()) == (length, piece_digests(data), data)
    assert store.digest(record.block, 0, 0) == record.digest
    assert store.length(record.block) == length
    assert store.count() == 1
    assert store.status()["bytes_live"] == length


@pytest.mark.parametrize(
    ("first", "count"), [(0, 1), (0, 2), (1, 1), (1, 0), (2, 2), (3, 1), (0, 4), (4, 0), (99, 1)]
)
def test_pieces(store: BlockStore, first: int, count: int) -> None:
    data = some_bytes(3 * PIECE_BYTES + 100)
    record = put(store, 1, data)
    part = store.get(record.block, first, count)
    end = (first + count) * PIECE_BYTES if count else len(data)
    assert part.data == data[first * PIECE_BYTES : end]
    assert part.length == len(data)
    assert store.get(record.block, first, count, room()) == part
    if part.data:
        assert part_matches(record.digest, record.length, first, part.piece_digests, part.data)
    assert len(part.piece_digests) == 4 * DIGEST_BYTES
    assert store.digest(record.block, first, count) == record.digest


def test_negative_pieces_are_refused(store: BlockStore) -> None:
    record = put(store, 1, b"x")
    for first, count in ((-1, 0), (0, -1)):
        with pytest.raises(BadRequest):
            store.get(record.block, first, count)
        with pytest.raises(BadRequest):
            store.digest(record.block, first, count)


def test_put_again_changes_nothing(store: BlockStore) -> None:
    record = put(store, 1, b"abc")
    before = store.status()
    store.put(record.block, record.digest, b"abc")
    assert store.count() == 1
    assert store.status()["bytes_live"] == before["bytes_live"] == 3


def test_an_id_is_never_given_other_bytes(store: BlockStore) -> None:
    record = put(store, 1, b"abc")
    with pytest.raises(BlockConflict):
        put(store, 1, b"abd")
    assert store.get(record.block, 0, 0).data == b"abc"


def test_bytes_that_changed_on_the_way_are_refused(store: BlockStore) -> None:
    with pytest.raises(DigestMismatch):
        store.put(block_id(1), block_digest(b"abc"), b"abd")
    with pytest.raises(DigestMismatch):
        store.repair(block_id(1), block_digest(b"abc"), b"abd", "")
    assert store.count() == 0


def test_ill_formed_calls_are_refused(store: BlockStore) -> None:
    with pytest.raises(BadRequest):
        store.put(b"short", block_digest(b"x"), b"x")
    with pytest.raises(BadRequest):
        store.put(block_id(1), b"short", b"x")
    with pytest.raises(MessageTooLarge):
        put(store, 1, bytes(BLOCK_BYTES + 1))
    with pytest.raises(BadRequest):
        store.inventory(b"", 0)
    with pytest.raises(BadRequest):
        store.get(b"short", 0, 0)


def test_what_is_not_here(store: BlockStore) -> None:
    for call in (store.get, store.digest):
        with pytest.raises(BlockMissing):
            call(block_id(1), 0, 0)
    assert store.length(block_id(1)) is None


def test_delete(store: BlockStore) -> None:
    for number in range(5):
        put(store, number, some_bytes(20_000, number))
    assert store.delete([block_id(1), block_id(3), block_id(3), block_id(77)]) == 2
    assert store.delete([block_id(1)]) == 0
    for _ in range(2):
        assert [r.block for r in store.inventory(b"", 10)] == [block_id(n) for n in (0, 2, 4)]
        assert store.count() == 3
        assert store.status()["bytes_live"] == 60_000
        with pytest.raises(BlockMissing):
            store.get(block_id(1), 0, 0)
        assert store.get(block_id(2), 0, 0).data == some_bytes(20_000, 2)
        store.maintain()


def test_repair_fills_and_leaves_good_copies_alone(store: BlockStore) -> None:
    data = some_bytes(5000)
    assert store.repair(block_id(1), block_digest(data), data, "refill") == "filled"
    assert store.repair(block_id(1), block_digest(data), data, "again") == "good"
    assert store.get(block_id(1), 0, 0).data == data
    assert store.status()["quarantined"] == 0


def test_repair_replaces_a_copy_of_other_bytes(store: BlockStore) -> None:
    put(store, 1, b"a lie")
    truth = b"the truth"
    assert store.repair(block_id(1), block_digest(truth), truth, "lost the vote") == "replaced"
    assert store.digest(block_id(1), 0, 0) == block_digest(truth)
    assert store.inventory(b"", 2) == [BlockRecord(block_id(1), len(truth), block_digest(truth))]
    assert store.status()["quarantined"] == 1
    assert store.status()["bytes_live"] == len(truth)
    assert store.count() == 1


def test_inventory_in_pages(store: BlockStore) -> None:
    records = [put(store, number, b"%d" % number) for number in (5, 3, 9, 1, 7, 300, 256)]
    records.sort()
    store.maintain()
    records.append(put(store, 4, b"4"))
    records.sort()
    store.delete([block_id(3)])
    records = [record for record in records if record.block != block_id(3)]
    seen: list[BlockRecord] = []
    while page := store.inventory(seen[-1].block if seen else b"", 2):
        assert len(page) <= 2
        seen += page
    assert seen == records


def test_what_came_after_a_sync_had_begun_is_not_told_to_be_durable(
    store: BlockStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put(store, 1, b"kept").block
    sync = store.sync

    def sync_and_take_another() -> None:
        sync()
        put(store, 2, b"late")

    monkeypatch.setattr(store, "sync", sync_and_take_another)
    identity = Identity("dataserver", "test", 1, 1)
    service = DataService(
        store,
        identity,
        ScrubMark(tmp_path),
        Milestones(tmp_path),
        Quarantine(tmp_path / "losers", 1, 1.0),
        BlockRings(tmp_path, store),
    )
    assert asyncio.run(service.sync([kept, block_id(2)])) == [block_id(2)]
    service.close()


def test_a_page_is_bounded(store: BlockStore) -> None:
    for number in range(INVENTORY_LIMIT + 10):
        put(store, number, b"")
    assert len(store.inventory(b"", 10**9)) == INVENTORY_LIMIT


def test_small_replicas_are_told_together(store: BlockStore, tmp_path: Path) -> None:
    lengths = (7, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1)
    small, full, long = (put(store, length, some_bytes(length, length)) for length in lengths)
    identity = Identity("dataserver", "test", 1, 1)
    service = DataService(
        store,
        identity,
        ScrubMark(tmp_path),
        Milestones(tmp_path),
        Quarantine(tmp_path / "losers", 1, 1.0),
        BlockRings(tmp_path, store),
    )
    sent = [full.block, block_id(1), small.block, long.block]
    voted = [small.block, block_id(1), full.block, long.block, small.block]
    found = asyncio.run(service.read_small(sent, voted))
    assert found.data == [some_bytes(SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES), None, some_bytes(7, 7), b""]
    assert found.digests[1:4] == [None, full.digest, b""]
    with pytest.raises(BadRequest):
        asyncio.run(service.read_small([small.block] * SMALL_FILES_AT_ONCE, [small.block]))
    service.close()


def test_many_votes_are_what_each_is_alone(store: BlockStore, tmp_path: Path) -> None:
    records = [put(store, number, some_bytes(number, length)) for number, length in enumerate(LENGTHS, 1)]
    service = DataService(
        store,
        Identity("dataserver", "test", 1, 1),
        ScrubMark(tmp_path),
        Milestones(tmp_path),
        Quarantine(tmp_path / "losers", 1, 1.0),
        BlockRings(tmp_path, store),
    )
    parts = [VotedPart(r.block, first, count) for r in records for first, count in ((0, 0), (1, 1), (0, 2))]
    parts += [VotedPart(block_id(99), 0, 1), parts[0]]
    found = asyncio.run(service.digests(parts))
    assert found == [None if part.block == block_id(99) else store.digest(*part) for part in parts]
    assert found[0] == records[0].digest
    service.close()
