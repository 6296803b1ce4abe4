"""The dirty bytes of one inode, in 1 MiB-aligned buffers. Pure; the inode's lock is held by the caller."""

from __future__ import annotations

from collections.abc import Iterator

from fusefs.extents import Placement, Span, add_range, pack, subtract_range
from wire.digest import BLOCK_BYTES


class _Buffer:
    __slots__ = ("data", "ranges")

    def __init__(self) -> None:
        self.data = bytearray()
        self.ranges: list[tuple[int, int]] = []

    def write(self, start: int, chunk: memoryview) -> int:
        data, end = self.data, start + len(chunk)
        if len(data) < start:
            data.extend(bytes(start - len(data)))
        if len(data) == start:
            data += chunk
        else:
            data[start:end] = chunk
        return add_range(self.ranges, start, end)

    def is_full(self) -> bool:
        return self.ranges[0] == (0, BLOCK_BYTES)


class DirtyBuffers:
    """What was written and not yet made into blocks. `bytes` counts the dirty bytes."""

    __slots__ = ("_buffers", "bytes")

    def __init__(self) -> None:
        self._buffers: dict[int, _Buffer] = {}
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
                gone += subtract_range(self._buffers[index].ranges, low, high)
                if not self._buffers[index].ranges:
                    del self._buffers[index]
        self.bytes -= gone
        return gone

    def find(self, start: int, end: int) -> list[Span[bytes]]:
        """Return copies of the dirty bytes within [start, end), in order."""
        found: list[Span[bytes]] = []
        if not self._buffers:
            return found
        for index in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            buffer = self._buffers.get(index)
            if buffer is None:
                continue
            base = index * BLOCK_BYTES
            for low, high in buffer.ranges:
                low, high = max(low, start - base), min(high, end - base)
                if low < high:
                    found.append(Span(base + low, base + high, bytes(memoryview(buffer.data)[low:high]), 0))
        return found

    def take_full(self) -> Iterator[tuple[bytearray, list[Placement]]]:
        """Take out every full buffer, as a block's bytes and where they belong in the file."""
        for index in [index for index, buffer in self._buffers.items() if buffer.is_full()]:
            self.bytes -= BLOCK_BYTES
            yield self._buffers.pop(index).data, [Placement(index * BLOCK_BYTES, BLOCK_BYTES, 0)]

    def take_all(self) -> Iterator[tuple[bytearray, list[Placement]]]:
        """Take everything out, scattered ranges packed into blocks."""
        buffers, self._buffers, self.bytes = self._buffers, {}, 0
        ranges = [
            (index * BLOCK_BYTES + low, index * BLOCK_BYTES + high)
            for index in sorted(buffers)
            for low, high in buffers[index].ranges
        ]
        for placements in pack(ranges, BLOCK_BYTES):
            yield _gather(buffers, placements), placements


def _gather(buffers: dict[int, _Buffer], placements: list[Placement]) -> bytearray:
    first = placements[0]
    whole = buffers[first.offset // BLOCK_BYTES].data
    if len(placements) == 1 and first.offset % BLOCK_BYTES == 0 and len(whole) == first.length:
        return whole
    gathered = bytearray()
    for offset, length, _ in placements:
        index, start = divmod(offset, BLOCK_BYTES)
        gathered += memoryview(buffers[index].data)[start : start + length]
    return gathered
