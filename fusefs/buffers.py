"""The dirty bytes of one inode, in 1 MiB-aligned buffers. Pure; the inode's lock is held by the caller.

A buffer holds only the bytes that were written, as segments that neither overlap nor touch, so that
scattered small writes take no more memory than they have bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from fusefs.extents import Placement, Span, pack
from wire.digest import BLOCK_BYTES


class _Buffer:
    """`starts[i]` is where in the buffer the bytes `segments[i]` belong."""

    __slots__ = ("segments", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.segments: list[bytearray] = []

    def write(self, start: int, chunk: memoryview) -> int:
        """Return how many bytes became dirty that were not before."""
        end = start + len(chunk)
        first = bisect_right(self.starts, start) - 1
        if first < 0 or self.starts[first] + len(self.segments[first]) < start:
            first += 1
        last = bisect_right(self.starts, end, first)
        if first == last:
            self.starts.insert(first, start)
            self.segments.insert(first, bytearray(chunk))
            return len(chunk)
        known = sum(map(len, self.segments[first:last]))
        if last - first > 1 or start < self.starts[first]:
            self._join(first, last, min(start, self.starts[first]), end)
        segment, place = self.segments[first], start - self.starts[first]
        segment[place : place + len(chunk)] = chunk
        return len(segment) - known

    def _join(self, first: int, last: int, start: int, end: int) -> None:
        """Make one segment of several; the gaps between them are about to be overwritten."""
        end = max(end, self.starts[last - 1] + len(self.segments[last - 1]))
        joined = bytearray(end - start)
        for place, segment in zip(self.starts[first:last], self.segments[first:last], strict=True):
            joined[place - start : place - start + len(segment)] = segment
        self.starts[first:last] = [start]
        self.segments[first:last] = [joined]

    def erase(self, low: int, high: int) -> int:
        """Return how many dirty bytes went."""
        before = sum(map(len, self.segments))
        pairs = list(zip(self.starts, self.segments, strict=True))
        self.starts, self.segments = [], []
        for start, segment in pairs:
            end = start + len(segment)
            if end <= low or high <= start:
                self._append(start, segment)
                continue
            if start < low:
                self._append(start, segment[: low - start])
            if high < end:
                self._append(high, segment[high - start :])
        return before - sum(map(len, self.segments))

    def _append(self, start: int, segment: bytearray) -> None:
        self.starts.append(start)
        self.segments.append(segment)

    def is_full(self) -> bool:
        return len(self.segments[0]) == BLOCK_BYTES


class DirtyBuffers:
    """What was written and not yet made into blocks. `bytes` counts the dirty bytes."""

    __slots__ = ("_buffers", "_full", "bytes")

    def __init__(self) -> None:
        self._buffers: dict[int, _Buffer] = {}
        self._full: set[int] = set()
        """Which of them have become full; they may be so no more."""
        self.bytes = 0

    def write(self, offset: int, data: memoryview) -> int:
        """Keep `data` at a file offset; return how many bytes became dirty that were not before."""
        added = position = 0
        while position < len(data):
            index, start = divmod(offset + position, BLOCK_BYTES)
            chunk = data[position : position + BLOCK_BYTES - start]
            buffer = self._buffers.get(index)
            if buffer is None:
                buffer = self._buffers[index] = _Buffer()
            added += buffer.write(start, chunk)
            if buffer.is_full():
                self._full.add(index)
            position += len(chunk)
        self.bytes += added
        return added

    def erase(self, start: int, end: int | None) -> int:
        """Forget the dirty bytes in [start, end), None: to the end; return how many they were."""
        gone = 0
        for index in list(self._buffers):
            base = index * BLOCK_BYTES
            low = max(start - base, 0)
            high = BLOCK_BYTES if end is None else min(end - base, BLOCK_BYTES)
            if low < high:
                gone += self._buffers[index].erase(low, high)
                if not self._buffers[index].segments:
                    del self._buffers[index]
        self.bytes -= gone
        return gone

    def move(self, start: int, distance: int) -> None:
        """Move all dirty bytes from `start` on by `distance` bytes; there must be none where they go."""
        end = (max(self._buffers, default=0) + 1) * BLOCK_BYTES
        moved = self.find(start, end)
        self.erase(start, None)
        for low, _, data, _ in moved:
            self.write(low + distance, memoryview(data))

    def find(self, start: int, end: int) -> list[Span[bytes]]:
        """Return copies of the dirty bytes within [start, end), in order."""
        found: list[Span[bytes]] = []
        for index in self._indexes(start, end):
            buffer = self._buffers[index]
            base = index * BLOCK_BYTES
            first = max(0, bisect_right(buffer.starts, start - base) - 1)
            last = bisect_left(buffer.starts, end - base)
            for place, segment in zip(buffer.starts[first:last], buffer.segments[first:last], strict=True):
                low, high = max(place, start - base), min(place + len(segment), end - base)
                if low < high:
                    copy = bytes(memoryview(segment)[low - place : high - place])
                    found.append(Span(base + low, base + high, copy, 0))
        return found

    def _indexes(self, start: int, end: int) -> list[int]:
        """Return in order which buffers there are in [start, end), which may be a file of 2**63 bytes."""
        indexes = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        if len(indexes) <= len(self._buffers):
            return [index for index in indexes if index in self._buffers]
        return sorted(index for index in self._buffers if index in indexes)

    def take_full(self) -> Iterator[tuple[bytearray, list[Placement]]]:
        """Take out every full buffer, as a block's bytes and where they belong in the file."""
        full, self._full = self._full, set()
        for index in sorted(full):
            buffer = self._buffers.get(index)
            if buffer is not None and buffer.is_full():
                del self._buffers[index]
                self.bytes -= BLOCK_BYTES
                yield buffer.segments[0], [Placement(index * BLOCK_BYTES, BLOCK_BYTES, 0)]

    def take_all(self) -> Iterator[tuple[bytearray, list[Placement]]]:
        """Take everything out, scattered ranges packed into blocks."""
        buffers, self._buffers, self._full, self.bytes = self._buffers, {}, set(), 0
        segments = {
            index * BLOCK_BYTES + start: segment
            for index in sorted(buffers)
            for start, segment in zip(buffers[index].starts, buffers[index].segments, strict=True)
        }
        ranges = [(start, start + len(segment)) for start, segment in segments.items()]
        for placements in pack(ranges, BLOCK_BYTES):
            if len(placements) == 1:
                yield segments[placements[0].offset], placements
            else:
                yield bytearray().join(segments[placement.offset] for placement in placements), placements
