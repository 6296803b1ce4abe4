"""Parts of long blocks are read without their headers, where these are known."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataserver import segment
from dataserver.index import Entry
from dataserver.known_headers import KnownHeaders
from dataserver.record import LIVE, Header
from dataserver.segments import SegmentStore
from tests.unit.segment_support import block_id, overwrite
from wire.digest import PIECE_BYTES, block_digest, part_matches
from wire.errors import BlockDamaged

DATA = random.Random(5).randbytes(5 * PIECE_BYTES + 10)
DIGEST = block_digest(DATA)
BLOCK = block_id(1)


@pytest.fixture
def header_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places of headers that were read by themselves."""
    reads: list[int] = []
    read = segment.Segment.read_header

    def read_header(self: segment.Segment, offset: int) -> Header | None:
        reads.append(offset)
        return read(self, offset)

    monkeypatch.setattr(segment.Segment, "read_header", read_header)
    return reads


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    store = SegmentStore(tmp_path)
    store.put(BLOCK, DIGEST, DATA)
    yield store
    store.close()


def are_good(store: SegmentStore) -> list[bool]:
    """Vote on each piece, and read it; return whether both are right."""
    good = []
    for piece in range(6):
        part = store.get(BLOCK, piece, 1)
        right = part_matches(DIGEST, len(DATA), piece, part.piece_digests, part.data)
        assert right == (store.digest(BLOCK, piece, 1) == DIGEST)
        good.append(right)
    return good


def test_of_what_was_just_written_no_header_is_read(store: SegmentStore, header_reads: list[int]) -> None:
    assert all(are_good(store))
    assert not header_reads


def test_a_header_is_read_once(store: SegmentStore, header_reads: list[int]) -> None:
    store.locate(BLOCK)  # as after a start, nothing is known
    assert all(are_good(store)) and all(are_good(store))
    assert len(header_reads) == 1


def test_bytes_lose_the_vote_with_a_known_header_too(store: SegmentStore) -> None:
    place = store.locate(BLOCK)
    assert all(are_good(store))
    overwrite(place.path, place.payload_offset + 3 * PIECE_BYTES, bytes(8))
    assert are_good(store) == [True, True, True, False, True, True]


def test_a_copy_that_was_replaced_is_read_by_its_own_header(store: SegmentStore) -> None:
    place = store.locate(BLOCK)
    assert all(are_good(store))
    overwrite(place.path, place.payload_offset, bytes(8))
    assert store.repair(BLOCK, DIGEST, DATA, "test") == "replaced"
    assert store.locate(BLOCK) != place
    assert all(are_good(store))


def test_a_header_that_is_damaged_on_disk_loses_votes_on_the_whole_block(store: SegmentStore) -> None:
    place = store.locate(BLOCK)
    assert all(are_good(store))
    overwrite(place.path, place.header_offset, bytes(8))
    with pytest.raises(BlockDamaged):
        store.digest(BLOCK, 0, 0)
    assert store.repair(BLOCK, DIGEST, DATA, "test") == "replaced"
    assert store.digest(BLOCK, 0, 0) == DIGEST


def test_headers_that_were_not_asked_for_longest_go() -> None:
    known = KnownHeaders(most=2)
    entries = [Entry(block_id(n), 0, 4096 * n, 5, DIGEST) for n in range(3)]
    headers = [Header(LIVE, entry.block, 5, DIGEST, b"", 0, entry.offset) for entry in entries]
    known.note(entries[0], headers[0])
    known.note(entries[1], headers[1])
    assert known.get(entries[0]) == headers[0]
    known.note(entries[2], headers[2])
    assert [known.get(entry) for entry in entries] == [headers[0], None, headers[2]]
