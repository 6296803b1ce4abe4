"""The arithmetic of extents: tables, and a random check against a file that is a plain list of bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaserver.extent_rules import (
    MAX_BYTES,
    check_ranges,
    merge,
    place_appends,
    replace,
    replaced_ranges,
    spans,
)
from wire.errors import FileTooLarge, InvalidArgument
from wire.messages import AttributeChanges, Commit, Extent

A, B, C = b"A", b"B", b"C"


def commit(*extents: Extent, cut: int | None = None, extend_to: int = 1000) -> Commit:
    return Commit(cut, list(extents), extend_to, [], AttributeChanges(), False)


@pytest.mark.parametrize(
    ("old", "ranges", "result"),
    [
        ([], [(0, 4, B, 0)], [(0, 4, B, 0)]),
        ([(0, 10, A, 0)], [(0, 10, B, 0)], [(0, 10, B, 0)]),
        ([(0, 10, A, 0)], [(2, 3, B, 7)], [(0, 2, A, 0), (2, 3, B, 7), (5, 5, A, 5)]),
        ([(0, 10, A, 5)], [(8, 4, B, 0)], [(0, 8, A, 5), (8, 4, B, 0)]),
        ([(4, 10, A, 5)], [(0, 6, B, 0)], [(0, 6, B, 0), (6, 8, A, 7)]),
        ([(0, 4, A, 0), (4, 4, B, 0), (8, 4, A, 8)], [(2, 8, None, 0)], [(0, 2, A, 0), (10, 2, A, 10)]),
        ([(0, 4, A, 0)], [(4, 4, A, 4)], [(0, 8, A, 0)]),
        ([(4, 4, A, 4)], [(0, 4, A, 0)], [(0, 8, A, 0)]),
        ([(0, 4, A, 0), (8, 4, A, 8)], [(4, 4, A, 4)], [(0, 12, A, 0)]),
        ([(0, 4, A, 0)], [(4, 4, A, 5)], [(0, 4, A, 0), (4, 4, A, 5)]),
        ([(0, 30, A, 0)], [(5, 5, B, 0), (20, 5, None, 0)],
         [(0, 5, A, 0), (5, 5, B, 0), (10, 10, A, 10), (25, 5, A, 25)]),
        ([(0, 4, A, 0)], [(1, 2, A, 1)], [(0, 4, A, 0)]),
    ],
)  # fmt: skip
def test_replace(old: list[tuple], ranges: list[tuple], result: list[tuple]) -> None:
    before = [Extent(*row) for row in old]
    change = replace(before, [Extent(*row) for row in ranges])
    assert set(change.removed) <= set(before)
    after = sorted([extent for extent in before if extent not in change.removed] + change.added)
    assert after == [Extent(*row) for row in result]


def test_what_stays_is_not_written_again() -> None:
    old = [Extent(0, 4, A, 0), Extent(100, 4, B, 0)]
    assert replace(old, [Extent(50, 4, C, 0)]) == ([], [Extent(50, 4, C, 0)])


@pytest.mark.parametrize(
    ("cut", "extents", "ranges"),
    [
        (None, [], []),
        (0, [], [(0, MAX_BYTES, None, 0)]),
        (7, [(0, 10, A, 0)], [(0, 10, A, 0), (10, MAX_BYTES - 10, None, 0)]),
        (7, [(9, 1, A, 0)], [(7, 2, None, 0), (9, 1, A, 0), (10, MAX_BYTES - 10, None, 0)]),
        (7, [(0, 2, A, 0)], [(0, 2, A, 0), (7, MAX_BYTES - 7, None, 0)]),
        (MAX_BYTES, [(0, 2, A, 0)], [(0, 2, A, 0)]),
        (None, [(5, 2, A, 0), (0, 2, B, 0)], [(0, 2, B, 0), (5, 2, A, 0)]),
    ],
)
def test_replaced_ranges(cut: int | None, extents: list[tuple], ranges: list[tuple]) -> None:
    assert replaced_ranges(cut, [Extent(*row) for row in extents]) == [Extent(*row) for row in ranges]


def test_spans_join_what_touches() -> None:
    ranges = [Extent(0, 2, A, 0), Extent(2, 2, None, 0), Extent(5, 1, B, 0)]
    assert spans(ranges) == [(0, 4), (5, 6)]


def test_merge_joins_what_continues() -> None:
    assert merge([Extent(0, 2, A, 0), Extent(2, 2, A, 2), Extent(4, 2, B, 4)]) == [
        Extent(0, 4, A, 0),
        Extent(4, 2, B, 4),
    ]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (commit(cut=-1), InvalidArgument),
        (commit(extend_to=-1), InvalidArgument),
        (commit(Extent(-1, 2, A, 0)), InvalidArgument),
        (commit(Extent(0, 0, A, 0)), InvalidArgument),
        (commit(Extent(0, 1, A, -1)), InvalidArgument),
        (commit(Extent(999, 2, A, 0)), InvalidArgument),
        (commit(Extent(MAX_BYTES, 1, A, 0)), FileTooLarge),
        (commit(Extent(2**70, 1, A, 0)), FileTooLarge),
        (commit(extend_to=MAX_BYTES + 1), FileTooLarge),
        (commit(cut=MAX_BYTES + 1), FileTooLarge),
    ],
)
def test_numbers_that_cannot_be(wrong: Commit, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_ranges(wrong, 0)


@pytest.mark.parametrize(
    ("size", "cut", "extend_to", "result"),
    [(10, None, 0, 10), (10, 4, 0, 4), (10, 40, 0, 10), (10, 4, 7, 7), (10, None, 12, 12), (0, 0, 99, 99)],
)
def test_new_size(size: int, cut: int | None, extend_to: int, result: int) -> None:
    assert check_ranges(commit(cut=cut, extend_to=extend_to), size) == result


def test_overlapping_extents_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        replaced_ranges(None, [Extent(0, 5, A, 0), Extent(4, 5, B, 0)])


SIZE = 40
extent_lists = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 5), st.sampled_from([None, A, B, C]), st.integers(0, 9)),
    max_size=8,
)


def laid_out(steps: list[tuple]) -> list[Extent]:
    """Extents that do not overlap, from (length, gap before, block, offset in block)."""
    extents, position = [], 0
    for length, gap, block, block_offset in steps:
        position += gap
        extents.append(Extent(position, length, block, 0 if block is None else block_offset))
        position += length
    return extents


def byte_by_byte(model: list, extents: list[Extent]) -> list:
    """The dumb second implementation: what each byte of the file is."""
    for extent in extents:
        for index in range(extent.length):
            byte = None if extent.block is None else (extent.block, extent.block_offset + index)
            model[extent.offset + index] = byte
    return model


@given(extent_lists, extent_lists, st.one_of(st.none(), st.integers(0, SIZE)))
def test_replace_does_what_bytes_do(old_steps: list, new_steps: list, cut: int | None) -> None:
    old = [extent for extent in laid_out(old_steps) if extent.block is not None]
    new = laid_out(new_steps)
    model = byte_by_byte([None] * 200, old)
    if cut is not None:
        model[cut:] = [None] * (200 - cut)
    byte_by_byte(model, new)
    old = merge(old)
    change = replace(old, replaced_ranges(cut, new))
    after = sorted([extent for extent in old if extent not in change.removed] + change.added)
    assert all(one.offset + one.length <= two.offset for one, two in pairwise(after))
    assert byte_by_byte([None] * 200, after) == model
    looked_at = spans(replaced_ranges(cut, new))
    touching = [e for e in old if any(s <= e.offset + e.length and e.offset <= end for s, end in looked_at)]
    assert replace(touching, replaced_ranges(cut, new)).added == (change.added if looked_at else [])


@pytest.mark.parametrize(
    ("size", "cut", "extend_to", "append_from", "extents", "placed", "end"),
    [
        (100, None, 0, 100, [(100, 10)], [(100, 10)], 110),
        (150, None, 0, 100, [(0, 5), (100, 10), (110, 10)], [(0, 5), (150, 10), (160, 10)], 170),
        (0, None, 0, 100, [(100, 10)], [(0, 10)], 10),
        (0, None, 60, 100, [(40, 20), (100, 10)], [(40, 20), (60, 10)], 70),
        (100, 0, 0, 0, [(0, 10)], [(0, 10)], 10),
        (100, 50, 0, 50, [(50, 10)], [(50, 10)], 60),
    ],
)
def test_appended_extents_go_to_the_end(
    size: int, cut: int | None, extend_to: int, append_from: int, extents: list, placed: list, end: int
) -> None:
    given_ = commit(*(Extent(*row, A, 7) for row in extents), cut=cut, extend_to=extend_to)
    after = place_appends(given_._replace(append_from=append_from), size)
    assert after.extents == [Extent(*row, A, 7) for row in placed]
    assert (after.extend_to, after.append_from) == (end, None)
    assert check_ranges(after, size) == max(end, size if cut is None else min(size, cut))


def test_appended_extents_are_apart_and_bounded() -> None:
    with pytest.raises(InvalidArgument):
        place_appends(commit(Extent(90, 20, A, 0))._replace(append_from=100), 100)
    with pytest.raises(FileTooLarge):
        place_appends(commit(Extent(100, 20, A, 0))._replace(append_from=100), MAX_BYTES - 10)
