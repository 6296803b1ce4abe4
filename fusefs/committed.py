"""What is known of a file's committed extents. No I/O; who uses it holds the lock of the inode."""

from __future__ import annotations

from fusefs.changes import ChangeSet
from fusefs.extents import END_OF_FILE, RangeMap, Span, add_range
from wire.messages import BlockRecord, FileMap

MOST_CACHED_EXTENTS = 65536


class CommittedMap:
    """The part of a file's committed extents that was fetched, of one version."""

    __slots__ = ("_known", "_map", "version")

    def __init__(self) -> None:
        self._map: RangeMap[BlockRecord] = RangeMap()
        self._known: list[tuple[int, int]] = []
        self.version = -1

    def reset(self, version: int) -> None:
        self._map, self._known, self.version = RangeMap(), [], version

    def learn(self, offset: int, run: FileMap) -> None:
        """Take over a run that was asked for from `offset` on; a run of another version starts anew."""
        if run.version != self.version:
            self.reset(run.version)
        for extent in run.extents:
            record = BlockRecord(extent.block, extent.block_length, extent.digest)
            start = extent.offset
            self._map.overlay(Span(start, start + extent.length, record, extent.block_offset))
        whole = run.complete or not run.extents
        end = END_OF_FILE if whole else run.extents[-1].offset + run.extents[-1].length
        add_range(self._known, offset, end)

    def trim(self) -> None:
        """Forget what is known of a very fragmented file, before more of it is fetched."""
        if len(self._map) > MOST_CACHED_EXTENTS:
            self.reset(self.version)

    def first_unknown(self, start: int, end: int) -> int | None:
        """Return the first offset in [start, end) of which nothing is known; None if all is."""
        for low, high in self._known:
            if low <= start < high:
                return None if end <= high else high
        return start if start < end else None

    def apply(self, change: ChangeSet, version: int) -> None:
        """Follow a commit of this mount that made `version` out of the version that is known here."""
        self.version = version
        if change.cut is not None:
            self._map.erase(change.cut, END_OF_FILE)
            add_range(self._known, change.cut, END_OF_FILE)
        for start, end, source, source_offset in change.map:
            if source is None:
                self._map.erase(start, end)
            elif source.record is not None:
                self._map.overlay(Span(start, end, source.record, source_offset))
            add_range(self._known, start, end)

    def find(self, start: int, end: int) -> list[Span[BlockRecord]]:
        return self._map.find(start, end)
