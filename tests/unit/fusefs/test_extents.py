"""Range maps and packing: tables, and a comparison with a dumb model of one entry a byte."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.buffers import DirtyBuffers
from fusefs.extents import Placement, RangeMap, Span, add_range, pack, pieces_of
from wire.digest import BLOCK_BYTES

SIZE = 40
RANGE = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


@given(st.lists(st.tuples(st.booleans(), RANGE), max_size=12), RANGE)
def test_a_range_map_is_what_was_laid_over_last(
    steps: list[tuple[bool, list[int]]], window: list[int]
) -> None:
    model: list[tuple[object, int] | None] = [None] * SIZE
    tested: RangeMap[object] = RangeMap()
    for erase, (start, end) in steps:
        source = object()
        if erase:
            tested.erase(start, end)
        else:
            tested.overlay(Span(start, end, source, 100))
        for index in range(start, end):
            model[index] = None if erase else (source, 100 + index - start)
    found: list[tuple[object, int] | None] = [None] * SIZE
    spans = list(tested)
    assert all(span.start < span.end for span in spans)
    assert all(left.end <= right.start for left, right in itertools.pairwise(spans))
    for start, end, source, offset in tested.find(0, SIZE):
        found[start:end] = [(source, offset + index) for index in range(end - start)]
    assert found == model
    low, high = window
    clipped = tested.find(low, high)
    assert [entry for entry in model[low:high] if entry] == [
        (span.source, span.source_offset + index)
        for span in clipped
        for index in range(span.end - span.start)
    ]
    covered = {index for span in clipped for index in range(span.start, span.end)}
    gaps = {index for start, end in tested.gaps(low, high) for index in range(start, end)}
    assert covered | gaps == set(range(low, high))
    assert not covered & gaps


def test_neighbours_of_the_same_source_are_one_span() -> None:
    source = object()
    tested = RangeMap([Span(0, 10, source, 0), Span(10, 20, source, 10)])
    assert list(tested) == [Span(0, 20, source, 0)]


@given(st.lists(RANGE, max_size=12))
def test_ranges_add_up(steps: list[list[int]]) -> None:
    ranges: list[tuple[int, int]] = []
    model: set[int] = set()
    for start, end in steps:
        new = set(range(start, end))
        assert add_range(ranges, start, end) == len(new - model)
        model |= new
    assert {index for start, end in ranges for index in range(start, end)} == model
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    ("ranges", "packed"),
    [
        ([], []),
        ([(0, 10)], [[Placement(0, 10, 0)]]),
        ([(5, 6), (90, 93)], [[Placement(5, 1, 0), Placement(90, 3, 1)]]),
        ([(0, 6), (20, 26)], [[Placement(0, 6, 0)], [Placement(20, 6, 0)]]),
        ([(0, 4), (20, 26), (30, 31)], [[Placement(0, 4, 0), Placement(20, 6, 4)], [Placement(30, 1, 0)]]),
    ],
)
def test_scattered_ranges_are_packed(ranges: list[tuple[int, int]], packed: list[list[Placement]]) -> None:
    assert pack(ranges, 10) == packed


@pytest.mark.parametrize(
    ("offset", "length", "first", "count"),
    [(0, 1, 0, 1), (0, 64, 0, 1), (0, 65, 0, 2), (63, 2, 0, 2), (64, 64, 1, 1), (100, 100, 1, 3)],
)
def test_pieces_of_a_range(offset: int, length: int, first: int, count: int) -> None:
    assert pieces_of(offset, length, 64) == (first, count)


PLACE = st.integers(0, 60).map(lambda place: BLOCK_BYTES - 30 + place)


@given(st.lists(st.tuples(st.sampled_from(["write", "erase", "cut"]), PLACE, PLACE), max_size=15))
def test_dirty_buffers_keep_what_was_written(steps: list[tuple[str, int, int]]) -> None:
    tested = DirtyBuffers()
    model: dict[int, int] = {}
    for number, (action, start, end) in enumerate(steps):
        known = set(model)
        new = set(range(start, end))
        if action == "write" and start < end:
            assert tested.write(start, memoryview(bytes([number]) * (end - start))) == len(new - known)
            model |= dict.fromkeys(new, number)
        elif action != "write":
            gone = {index for index in known if index >= start and (action == "cut" or index < end)}
            assert tested.erase(start, None if action == "cut" else end) == len(gone)
            for index in gone:
                del model[index]
        assert tested.bytes == len(model)
    found = {
        start + index: data[index]
        for start, _, data, _ in tested.find(0, 2 * BLOCK_BYTES)
        for index in range(len(data))
    }
    assert found == model
    blocks = list(tested.take_all())
    assert all(len(data) <= BLOCK_BYTES for data, _ in blocks)
    placed = {
        place.offset + index: data[place.block_offset + index]
        for data, placements in blocks
        for place in placements
        for index in range(place.length)
    }
    assert placed == model
    assert tested.bytes == 0


def test_a_full_buffer_is_a_block_of_its_own() -> None:
    tested = DirtyBuffers()
    tested.write(BLOCK_BYTES // 2, memoryview(b"a" * BLOCK_BYTES))
    assert list(tested.take_full()) == []
    tested.write(0, memoryview(b"b" * (BLOCK_BYTES // 2)))
    [(data, placements)] = tested.take_full()
    assert placements == [Placement(0, BLOCK_BYTES, 0)]
    assert data == b"b" * (BLOCK_BYTES // 2) + b"a" * (BLOCK_BYTES // 2)
    assert tested.bytes == BLOCK_BYTES // 2


def test_a_buffer_that_was_full_is_no_block_once_a_part_is_erased() -> None:
    tested = DirtyBuffers()
    tested.write(0, memoryview(b"a" * BLOCK_BYTES))
    tested.erase(5, 6)
    assert list(tested.take_full()) == []
    tested.write(5, memoryview(b"b"))
    assert [len(data) for data, _ in tested.take_full()] == [BLOCK_BYTES]
    assert list(tested.take_full()) == []


def test_dirty_bytes_of_a_sparse_file_are_found_without_looking_everywhere() -> None:
    tested = DirtyBuffers()
    tested.write(2**63 - 2, memoryview(b"z"))
    tested.write(7, memoryview(b"a"))
    assert tested.find(0, 2**63 - 1) == [Span(7, 8, b"a", 0), Span(2**63 - 2, 2**63 - 1, b"z", 0)]
