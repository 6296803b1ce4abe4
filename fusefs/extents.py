"""Range maps: which bytes of a file come from where. Pure; the caller holds whatever lock is needed.

A file in the mount is a stack of layers: the committed extents, the changes that are being committed,
the changes that wait, and the dirty buffers. Each layer but the last is a `RangeMap`; reading walks
the stack from the top. Nothing in here does I/O or knows what a source is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

END_OF_FILE = 2**63 - 1
"""No file has more bytes."""

S = TypeVar("S")
C = TypeVar("C", covariant=True)


class Span(NamedTuple, Generic[C]):
    """File bytes [start, end) are the bytes of `source` from `source_offset` on."""

    start: int
    end: int
    source: C
    source_offset: int

    def clip(self, start: int, end: int) -> Span[C]:
        """Return the part of this span within [start, end), which must not be empty."""
        low, high = max(self.start, start), min(self.end, end)
        return Span(low, high, self.source, self.source_offset + low - self.start)


class RangeMap(Generic[S]):
    """Spans in order of their offsets that never overlap; a later one replaces what it covers."""

    __slots__ = ("_spans", "_starts")

    def __init__(self, spans: Iterable[Span[S]] = ()) -> None:
        self._starts: list[int] = []
        self._spans: list[Span[S]] = []
        for span in spans:
            self.overlay(span)

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Span[S]]:
        return iter(self._spans)

    def overlay(self, span: Span[S]) -> None:
        """Let `span` replace whatever was in its range (an empty span changes nothing)."""
        if span.start >= span.end:
            return
        if not self._spans or self._spans[-1].end <= span.start:
            self._append(span)
            return
        first, last, kept = self._around(span.start, span.end)
        middle = [*kept[:1], span, *kept[1:]] if kept and kept[0].start < span.start else [span, *kept]
        self._splice(first, last, middle)

    def erase(self, start: int, end: int) -> None:
        """Forget whatever was in [start, end)."""
        if start >= end or not self._spans or self._spans[-1].end <= start:
            return
        first, last, kept = self._around(start, end)
        self._splice(first, last, kept)

    def move(self, start: int, distance: int) -> None:
        """Move everything from `start` on by `distance` bytes, over what is there."""
        moved = self.find(start, self.end())
        self.erase(start, self.end())
        for low, high, source, source_offset in moved:
            self.overlay(Span(low + distance, high + distance, source, source_offset))

    def find(self, start: int, end: int) -> list[Span[S]]:
        """Return the parts of spans within [start, end), in order; gaps are left out."""
        if start >= end:
            return []
        index = max(0, bisect_right(self._starts, start) - 1)
        found: list[Span[S]] = []
        for span in self._spans[index : bisect_left(self._starts, end)]:
            if span.end > start:
                found.append(span if start <= span.start and span.end <= end else span.clip(start, end))
        return found

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges within [start, end) that no span covers, in order."""
        found: list[tuple[int, int]] = []
        position = start
        for span in self.find(start, end):
            if span.start > position:
                found.append((position, span.start))
            position = span.end
        if position < end:
            found.append((position, end))
        return found

    def end(self) -> int:
        """Return the end of the last span, 0 if there is none."""
        return self._spans[-1].end if self._spans else 0

    def _append(self, span: Span[S]) -> None:
        if self._spans:
            before = self._spans[-1]
            joins = before.end == span.start and before.source is span.source
            if joins and before.source_offset + before.end - before.start == span.source_offset:
                self._spans[-1] = before._replace(end=span.end)
                return
        self._starts.append(span.start)
        self._spans.append(span)

    def _around(self, start: int, end: int) -> tuple[int, int, list[Span[S]]]:
        """Return the indexes of the spans that touch [start, end), and what of them lies outside of it."""
        first = max(0, bisect_right(self._starts, start) - 1)
        if first < len(self._spans) and self._spans[first].end <= start:
            first += 1
        last = bisect_left(self._starts, end, first)
        kept: list[Span[S]] = []
        if first < last:
            if self._spans[first].start < start:
                kept.append(self._spans[first].clip(0, start))
            if self._spans[last - 1].end > end:
                kept.append(self._spans[last - 1].clip(end, self._spans[last - 1].end))
        return first, last, kept

    def _splice(self, first: int, last: int, spans: list[Span[S]]) -> None:
        self._spans[first:last] = spans
        self._starts[first:last] = [span.start for span in spans]


def add_range(ranges: list[tuple[int, int]], start: int, end: int) -> int:
    """Add [start, end) to sorted, disjoint ranges in place; return how many bytes are new."""
    if start >= end:
        return 0
    if ranges and ranges[-1][0] <= start and end <= ranges[-1][1]:
        return 0
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
        return end - start
    if not ranges or ranges[-1][1] < start:
        ranges.append((start, end))
        return end - start
    first = bisect_left(ranges, start, key=lambda known: known[1])
    last = bisect_right(ranges, end, first, key=lambda known: known[0])
    covered = sum(min(high, end) - max(low, start) for low, high in ranges[first:last])
    if first < last:
        ranges[first:last] = [(min(start, ranges[first][0]), max(end, ranges[last - 1][1]))]
    else:
        ranges.insert(first, (start, end))
    return end - start - covered


class Placement(NamedTuple):
    """File bytes [offset, offset+length) go to a new block at `block_offset`."""

    offset: int
    length: int
    block_offset: int


def pack(ranges: Sequence[tuple[int, int]], limit: int) -> list[list[Placement]]:
    """Pack dirty ranges, in their order and undivided, into blocks of at most `limit` bytes.

    Args:
        ranges: (start, end) in order, disjoint, each of at most `limit` bytes.
        limit: the longest a block may be, in bytes.

    Returns:
        One list of placements a block.
    """
    blocks: list[list[Placement]] = []
    used = limit
    for start, end in ranges:
        length = end - start
        if used + length > limit:
            blocks.append([])
            used = 0
        blocks[-1].append(Placement(start, length, used))
        used += length
    return blocks


def pieces_of(offset: int, length: int, piece_bytes: int) -> tuple[int, int]:
    """Return the first piece, and how many, that hold bytes [offset, offset+length) of a block."""
    first = offset // piece_bytes
    return first, (offset + length - 1) // piece_bytes - first + 1
