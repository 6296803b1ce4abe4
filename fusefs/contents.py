"""The bytes of open files, where they are: changes that wait, blocks on their way, committed blocks.

It changes nothing, and knows nothing of file locks; raises errors of wire.errors. Safe in any thread; an
inode's lock is never held while a server is called.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from fusefs.changes import PendingBlock
from fusefs.extents import END_OF_FILE, Span
from fusefs.handles import Handle
from fusefs.inodes import Inode, Source
from fusefs.pages import PageLedger
from fusefs.ports import NamespacePort
from fusefs.readahead import BlockReader, follows
from fusefs.writeback import MAP_RUN_EXTENTS
from wire.digest import BLOCK_BYTES
from wire.errors import BlockError, ReadRefused
from wire.messages import BlockRecord

MAP_ATTEMPTS = 5
"""So often a read begins anew with a fresh file map when other mounts replace the file under it."""
SEEK_BYTES = 64 * 1024
"""Data and holes are looked for in so many bytes first, then in twice as many, and so on."""


class _Plan(NamedTuple):
    """Where bytes are to be read from, and up to where; of which version, and after how many drops."""

    spans: list[Span[Source]]
    end: int
    version: int
    drops: int


class Contents:
    """Reads open files.

    Args:
        namespace: tells the committed extents.
        pages: is told of contents that are newer.
        reader: of blocks.
    """

    def __init__(self, namespace: NamespacePort, pages: PageLedger, reader: BlockReader) -> None:
        self._namespace, self._pages, self._reader = namespace, pages, reader

    def read(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        """Return bytes [offset, offset+size) as far as the file reaches. Raises ReadRefused, BlockError."""
        inode = handle.inode
        for attempt in range(MAP_ATTEMPTS):
            plan = self._plan(inode, offset, offset + size)
            if plan.end <= offset:
                return b""
            whole = self._note_read(handle, offset, plan.end)
            try:
                return self._assemble(inode.ino, plan.spans, offset, plan.end, whole)
            except (ReadRefused, BlockError) as error:
                if attempt == MAP_ATTEMPTS - 1 or not self._is_outdated(inode, plan, offset):
                    inode.last_error = error
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _plan(self, inode: Inode, start: int, end: int) -> _Plan:
        """Plan to read bytes [start, end), as far as the file reaches."""
        with inode.lock:
            if inode.first_unknown(start, end) is not None:
                inode.committed.trim()
        while True:
            with inode.lock:
                unknown = inode.first_unknown(start, end)
                if unknown is None:
                    self._pages.filled(inode.ino)
                    stop = min(end, inode.size())
                    return _Plan(inode.plan(start, stop), stop, inode.base().version, inode.drops)
            self._fetch_map(inode, unknown)

    def _fetch_map(self, inode: Inode, offset: int) -> None:
        run = self._namespace.file_map(inode.ino, offset, MAP_RUN_EXTENTS)
        with inode.lock:
            inode.await_commit(run.version)
            self._pages.changed(inode.ino, inode.learn_map(offset, run))

    def whole_map(self, inode: Inode) -> list[Span[BlockRecord]]:
        """Return all committed extents of a file."""
        while True:
            with inode.lock:
                size = inode.base().size
                unknown = inode.committed.first_unknown(0, size)
                if unknown is None:
                    return inode.committed.find(0, size)
            self._fetch_map(inode, unknown)

    def _is_outdated(self, inode: Inode, plan: _Plan, offset: int) -> bool:
        """Tell whether a read that failed may succeed by another plan."""
        if pending := _pending_of(plan.spans):
            with inode.lock:
                inode.await_end_of_commit()  # if it fails, it is about to drop what was planned with
                if inode.drops != plan.drops or _pending_of(inode.plan(offset, plan.end)) != pending:
                    return True  # what is overwritten before its commit is deleted
        return self.is_superseded(inode, plan.version, offset)

    def is_superseded(self, inode: Inode, version: int, offset: int) -> bool:
        """Tell whether the file has changed since `version`, so that reading again may help."""
        if inode.base().version == version:
            self._fetch_map(inode, offset)
        return inode.base().version != version

    def _assemble(
        self, ino: int, spans: list[Span[Source]], start: int, end: int, whole: bool
    ) -> bytes | memoryview:
        parts: list[bytes | memoryview] = []
        position = start
        for span in spans:
            if span.start > position:
                parts.append(bytes(span.start - position))
            parts.extend(self._bytes_of(ino, span, whole))
            position = span.end
        if position < end:
            parts.append(bytes(end - position))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _bytes_of(self, ino: int, span: Span[Source], whole: bool) -> list[bytes | memoryview]:
        source, low, length = span.source, span.source_offset, span.end - span.start
        if isinstance(source, bytes):
            return [source if len(source) == length else memoryview(source)[low : low + length]]
        if isinstance(source, PendingBlock):
            data = source.data
            if data is not None:
                return [memoryview(data)[low : low + length]]
            if source.record is None:
                raise BlockError("a block that could not be written was dropped")
            source = source.record
        return [*self._reader.read(ino, source, low, length, whole)]

    def _note_read(self, handle: Handle, offset: int, end: int) -> bool:
        """Follow a handle's reads; fetch ahead if they are sequential. Returns whether they are."""
        if not follows(handle.read_from, handle.read_to, offset, end - offset):
            handle.read_from, handle.read_to, handle.window = offset, end, 0
            return False
        handle.read_to = max(handle.read_to, end)
        handle.window = min(max(1, 2 * handle.window), self._reader.most_blocks_ahead)
        inode = handle.inode
        with inode.lock:
            coming = inode.committed.find(handle.read_to, handle.read_to + handle.window * BLOCK_BYTES)
        self._reader.fetch_ahead(inode.ino, [span.source for span in coming])
        return True

    def seek(self, inode: Inode, offset: int, whence: int) -> int | None:
        """Return the next data (SEEK_DATA) or hole (SEEK_HOLE) as lseek(2), None if there is none."""
        if offset < 0:
            return None
        position, window = offset, SEEK_BYTES
        while True:
            spans, end, *_ = self._plan(inode, position, min(position + window, END_OF_FILE))
            if end <= position:  # the end of the file, where there is a hole for who came through data
                return position if whence == os.SEEK_HOLE and position > offset else None
            for span in spans:
                if whence == os.SEEK_DATA:
                    return span.start
                if span.start > position:
                    break
                position = span.end
            if whence == os.SEEK_HOLE and position < end:
                return position
            position, window = end, 2 * window


def _pending_of(spans: list[Span[Source]]) -> list[PendingBlock]:
    return [span.source for span in spans if isinstance(span.source, PendingBlock)]
