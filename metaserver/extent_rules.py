"""The arithmetic of replacing ranges of a file by extents. Pure; safe in any thread.

Everywhere a list of extents is in the order of their offsets and free of overlaps; each function is
linear in the lengths of its lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wire.errors import FileTooLarge, InvalidArgument
from wire.messages import Commit, Extent

MAX_BYTES = 2**63 - 1
"""The largest size of a file, and the end of the largest range."""


class Replacement(NamedTuple):
    """What becomes of a file's extents: rows to delete and rows to insert."""

    removed: list[Extent]
    added: list[Extent]


def check_ranges(commit: Commit, size: int) -> int:
    """Refuse a commit whose numbers cannot be; return the file's new size.

    Args:
        commit: the commit, its extents in any order.
        size: the file's size before.

    Raises:
        InvalidArgument: a negative number, an empty extent, one that reaches past the new size, overlaps.
        FileTooLarge: an end beyond MAX_BYTES.
    """
    if commit.extend_to < 0 or (commit.cut is not None and commit.cut < 0):
        raise InvalidArgument("a size cannot be negative")
    if max(commit.extend_to, commit.cut or 0) > MAX_BYTES:
        raise FileTooLarge()
    new_size = max(size if commit.cut is None else min(size, commit.cut), commit.extend_to)
    for offset, length, block, block_offset in commit.extents:
        if offset < 0 or length <= 0 or block_offset < 0:
            raise InvalidArgument("an extent has a negative place or no length")
        if offset + length > MAX_BYTES:
            raise FileTooLarge()
        if block is not None and offset + length > new_size:
            raise InvalidArgument(f"an extent reaches to {offset + length}, past the size {new_size}")
    return new_size


def place_appends(commit: Commit, size: int) -> Commit:
    """Return a commit whose appended extents lie where the file ends, and that extends it over them.

    Args:
        commit: with or without `append_from`.
        size: the file's size before.

    Raises:
        InvalidArgument: an extent reaches over `append_from`.
        FileTooLarge: the file would end beyond MAX_BYTES.
    """
    start = commit.append_from
    if start is None:
        return commit
    end = max(size if commit.cut is None else min(size, commit.cut), commit.extend_to)
    placed, reach = [], end
    for extent in commit.extents:
        if extent.offset >= start:
            placed.append(extent._replace(offset=extent.offset - start + end))
            reach = max(reach, placed[-1].offset + extent.length)
        elif extent.offset + extent.length > start:
            raise InvalidArgument(f"an extent reaches over {start}, where the appended ones begin")
        else:
            placed.append(extent)
    if reach > MAX_BYTES:
        raise FileTooLarge()
    return commit._replace(extents=placed, extend_to=reach, append_from=None)


def replaced_ranges(cut: int | None, extents: Sequence[Extent]) -> list[Extent]:
    """Return all ranges that a commit replaces: its extents, and holes where the cut leaves nothing.

    Raises:
        InvalidArgument: two extents overlap.
    """
    ordered = sorted(extents, key=_offset)
    reached = 0
    for offset, length, _, _ in ordered:
        if offset < reached:
            raise InvalidArgument(f"two extents overlap at {offset}")
        reached = offset + length
    return ordered if cut is None else list(_with_holes_from(cut, ordered))


def _with_holes_from(cut: int, ordered: Sequence[Extent]) -> Iterator[Extent]:
    reached = cut
    for extent in ordered:
        if extent.offset > reached:
            yield Extent(reached, extent.offset - reached, None, 0)
        yield extent
        reached = max(reached, extent.offset + extent.length)
    if reached < MAX_BYTES:
        yield Extent(reached, MAX_BYTES - reached, None, 0)


def spans(ranges: Sequence[Extent]) -> list[tuple[int, int]]:
    """Return (start, end) of each run of ranges that touch: where to look for what they replace."""
    found: list[tuple[int, int]] = []
    for extent in ranges:
        end = extent.offset + extent.length
        if found and found[-1][1] == extent.offset:
            found[-1] = (found[-1][0], end)
        else:
            found.append((extent.offset, end))
    return found


def replace(old: Sequence[Extent], ranges: Sequence[Extent]) -> Replacement:
    """Return the change of a file's extents when each of `ranges` replaces what was there.

    Args:
        old: at least the extents that overlap one of `ranges`; touching ones too, to be merged with.
        ranges: extents and holes.
    """
    data = [extent for extent in ranges if extent.block is not None]
    kept = list(_outside(old, ranges))
    result = {extent.offset: extent for extent in merge(sorted([*kept, *data], key=_offset))}
    removed = []
    for extent in old:
        if result.get(extent.offset) == extent:
            del result[extent.offset]
        else:
            removed.append(extent)
    return Replacement(removed, list(result.values()))


def _outside(old: Sequence[Extent], ranges: Sequence[Extent]) -> Iterator[Extent]:
    """Yield the parts of `old` that none of `ranges` covers."""
    first = 0
    for extent in old:
        position, end = extent.offset, extent.offset + extent.length
        while first < len(ranges) and ranges[first].offset + ranges[first].length <= position:
            first += 1
        index = first
        while index < len(ranges) and ranges[index].offset < end:
            if ranges[index].offset > position:
                yield part(extent, position, ranges[index].offset)
            position = ranges[index].offset + ranges[index].length
            index += 1
        if position < end:
            yield part(extent, position, end)
        first = max(first, index - 1)


def part(extent: Extent, start: int, end: int) -> Extent:
    """Return the part of an extent that holds the file bytes [start, end)."""
    return Extent(start, end - start, extent.block, extent.block_offset + start - extent.offset)


def merge(extents: Sequence[Extent]) -> list[Extent]:
    """Join neighbours that continue each other in the file and in the block."""
    merged: list[Extent] = []
    for extent in extents:
        if merged and _continues(merged[-1], extent):
            last = merged[-1]
            merged[-1] = last._replace(length=last.length + extent.length)
        else:
            merged.append(extent)
    return merged


def _continues(first: Extent, second: Extent) -> bool:
    return (
        first.offset + first.length == second.offset
        and first.block == second.block
        and first.block_offset + first.length == second.block_offset
    )


def _offset(extent: Extent) -> int:
    return extent.offset
