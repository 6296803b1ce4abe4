"""Faults on demand: the vote sees each kind, also after a restart and after the index is built anew."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataserver.lab import LabService, flip, lie, swap, torn, zeros
from dataserver.segments import SegmentStore
from wire.digest import PIECE_BYTES, block_digest
from wire.errors import BlockMissing, InvalidArgument

KINDS = ("flip", "torn", "zeros", "swap", "lie")
LENGTHS = (1, 5, 4096, 10_000, PIECE_BYTES + 1, 300_000)


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def content(number: int) -> bytes:
    return random.Random(number).randbytes(LENGTHS[number % len(LENGTHS)])


def put(store: SegmentStore, number: int, data: bytes) -> str:
    store.put(block_id(number), block_digest(data), data)
    return block_id(number).hex()


def filled(place: Path) -> SegmentStore:
    made = SegmentStore(place)
    for number in range(len(LENGTHS)):
        put(made, number, content(number))
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    made = filled(tmp_path)
    yield made
    made.close()


def lab(store: SegmentStore, number: int = 1) -> LabService:
    return LabService(store, number, lambda blank: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", range(len(LENGTHS)))
@pytest.mark.parametrize("without_index", [False, True])
def test_damage_is_seen_and_stays(tmp_path: Path, kind: str, victim: int, without_index: bool) -> None:
    store = filled(tmp_path)
    lab(store).corrupt(block_id(victim).hex(), kind)
    told = store.digest(block_id(victim), 0, 0)
    assert told != block_digest(content(victim))
    for number in range(len(LENGTHS)):
        if number != victim:
            assert store.digest(block_id(number), 0, 0) == block_digest(content(number))
    store.close()
    if without_index:
        for file in tmp_path.glob("index.sqlite*"):
            file.unlink()
    again = SegmentStore(tmp_path)
    assert again.digest(block_id(victim), 0, 0) == told
    assert again.count() == len(LENGTHS)
    assert again.repair(block_id(victim), block_digest(content(victim)), content(victim), "") == "replaced"
    assert again.get(block_id(victim), 0, 0).data == content(victim)
    again.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "swap"])
def test_damage_done_twice_is_still_damage(store: SegmentStore, kind: str) -> None:
    for number in range(len(LENGTHS)):
        for _ in range(3):
            try:
                lab(store).corrupt(block_id(number).hex(), kind)
            except InvalidArgument as error:
                raise AssertionError(f"{kind} again: {error}") from error
            assert store.digest(block_id(number), 0, 0) != block_digest(content(number))


def test_liars_agree_and_vouch_for_themselves(tmp_path: Path) -> None:
    votes = set()
    for server in (1, 2, 3):
        place = tmp_path / str(server)
        place.mkdir()
        store = SegmentStore(place)
        for number in range(server):
            put(store, 100 + number, b"other blocks come first, on each server other ones")
        key = put(store, 1, content(5))
        lab(store, server).corrupt(key, "lie")
        votes.add(store.digest(block_id(1), 0, 0))
        part = store.get(block_id(1), 0, 0)
        assert block_digest(part.data) == store.digest(block_id(1), 0, 0)
        assert store.digest(block_id(1), 2, 1) == store.digest(block_id(1), 0, 0)
        assert "good" in lab(store).print_content()
        store.close()
    assert len(votes) == 1
    assert votes != {block_digest(content(5))}


def test_flips_differ_from_server_to_server() -> None:
    data = b"1234\n"
    wrong = {flip(data, block_digest(data), number).payload for number in range(1, 6)}
    assert len(wrong) == 5


@given(st.binary(min_size=1, max_size=200), st.integers(1, 9))
def test_a_flip_is_one_bit_and_never_heals(data: bytes, number: int) -> None:
    recorded = block_digest(data)
    once = flip(data, recorded, number).payload
    twice = flip(once, recorded, number).payload
    for before, after in ((data, once), (once, twice)):
        bits = sum((a ^ b).bit_count() for a, b in zip(before, after, strict=True))
        assert bits == 1
    assert data not in (once, twice)
    assert flip(data, recorded, number).payload == once


@given(st.binary(min_size=1, max_size=200), st.binary(min_size=1, max_size=200))
def test_the_other_kinds_keep_the_length(data: bytes, other: bytes) -> None:
    for damage in (torn(data), zeros(data), lie(data), swap(data, "x", other)):
        assert len(damage.payload) == len(data)
    assert lie(data).payload != data
    assert torn(data).payload[: len(data) // 2] == data[: len(data) // 2]


def test_what_cannot_be_damaged_is_told(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    empty, nought = put(store, 1, b""), put(store, 2, bytes(10))
    for key, kind in (*((empty, kind) for kind in KINDS), (nought, "zeros"), (nought, "swap"), (nought, "?")):
        with pytest.raises(InvalidArgument):
            lab(store).corrupt(key, kind)
    for key in ("00" * 16, "", "xyz"):
        with pytest.raises(BlockMissing):
            lab(store).corrupt(key)
    store.close()


def test_print_content_judges_each_block(store: SegmentStore, capsys: pytest.CaptureFixture[str]) -> None:
    lab(store).corrupt(block_id(2).hex(), "torn")
    place = store.locate(block_id(3))
    with place.path.open("r+b") as file:
        file.seek(place.header_offset)
        file.write(b"garbage")
    text = lab(store).print_content()
    verdicts = [line.split()[2] for line in text.splitlines()]
    assert verdicts == ["good", "good", "corrupt", "corrupt", "good", "good"]
    assert text in capsys.readouterr().err
    assert lab(store).list_contents() == [block_id(number).hex() for number in range(len(LENGTHS))]
