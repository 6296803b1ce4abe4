"""Bringing the index up to what the segments hold, when a store is opened.

Segments are the truth: every record below a saved place is in the index already; what lies past it is
scanned, and taken if its bytes are whole. Nothing that cannot be read is destroyed, and what the disk could
not give is looked for again at the next start; only a last write whose header was never written is cut off.
Runs before the store serves, in one thread.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from dataserver.index import Entry, Index, IndexUnusable, SegmentRow, discard
from dataserver.record import PAGE_BYTES, Header
from dataserver.scan import Blank, Cut, Damaged, Found, Unfinished, Unreadable, scan
from dataserver.segment import Segment, segment_paths
from wire.config import ConfigError
from wire.digest import block_digest
from wire.errors import InternalError

_log = logging.getLogger(__name__)
_SAVE_EVERY = 4096
T = TypeVar("T")


@dataclass
class Recovered:
    """An index that knows every record, the open segments, the one to append to (None: begin a new one)."""

    index: Index
    segments: dict[int, Segment] = field(default_factory=dict)
    damaged: dict[int, int] = field(default_factory=dict)
    active: Segment | None = None


def recover(segment_directory: Path, index_path: Path) -> Recovered:
    """Open the segments and the index of a store; the index is made anew if it cannot be trusted.

    Raises:
        ConfigError: no index can be made. OSError: the segments cannot be opened.
        sqlite3.Error, InternalError: the index cannot be read.
    """
    index = _open_index(index_path)
    try:
        state = _bring_up(index, segment_directory)
    except InternalError:
        if not index.damage:
            raise
    else:
        if not index.damage:
            return state
    _log.warning("the index is damaged by now (%s) and is built anew from the segments", index.damage)
    index.close()
    discard(index_path)
    return _bring_up(_open_index(index_path), segment_directory)


def _bring_up(index: Index, segment_directory: Path) -> Recovered:
    """Open the segments, and have the index know all that they hold."""
    state = Recovered(index)
    known = index.segment_rows()
    paths = segment_paths(segment_directory)
    rows_end = index.last_ends()
    for number in known.keys() | rows_end.keys():
        if number not in paths:
            if lost := index.segment_counts[number]:
                _log.error("segment %08x is gone with its %d blocks", number, lost)
            index.drop_from(number, 0)
    for number, path in paths.items():
        segment = state.segments[number] = Segment(path, number)
        _recover_segment(state, segment, known.get(number), rows_end.get(number, 0))
    for entry in _freed_since_saved(state):
        index.remove(entry.block)
    _save(state)
    return state


def segment_rows(segments: dict[int, Segment], damaged: dict[int, int]) -> list[SegmentRow]:
    """Return what the index is to save of the segments.

    Args:
        segments: by number.
        damaged: how many damaged regions earlier starts have found in each, below what they knew.
    """
    return [_segment_row(segment, damaged.get(segment.number, 0)) for segment in segments.values()]


def _segment_row(segment: Segment, damaged: int) -> SegmentRow:
    known_to = _known_to(segment)
    damaged += sum(offset < known_to for offset in segment.damaged_at)  # the next start finds the others anew
    return SegmentRow(segment.number, segment.identity, known_to, segment.durable_to, damaged)


def _known_to(segment: Segment) -> int:
    """Return the place below which all records are known, and durable."""
    unread = segment.unread_from
    return segment.durable_to if unread is None else min(segment.durable_to, unread)


def _open_index(path: Path) -> Index:
    try:
        index = Index(path)
    except IndexUnusable as error:
        _log.warning("the index is unusable (%s) and is built anew from the segments", error)
    else:
        return index
    discard(path)
    try:
        return Index(path)
    except IndexUnusable as error:
        raise ConfigError(f"{path}: cannot be made: {error}; look at the disk's room and rights") from None


def _recover_segment(state: Recovered, segment: Segment, row: SegmentRow | None, rows_end: int) -> None:
    trusted = not state.index.is_new
    start = PAGE_BYTES
    if row is not None and row.identity == segment.identity and row.durable_to <= segment.end:
        start, segment.durable_to = row.indexed_to, row.durable_to
        state.damaged[segment.number] = row.damaged
    elif row is not None or rows_end:
        _log.warning("segment %s is not as the index knows it: scanned anew", segment.path.name)
        trusted = False
    if rows_end >= start:
        state.index.drop_from(segment.number, start)
    state.active = segment if _scan_from(state, segment, start, trusted) else None


def _scan_from(state: Recovered, segment: Segment, start: int, trusted: bool) -> bool:
    """Index the records from `start` on; return whether the segment can be appended to.

    Args:
        state: what is recovered so far.
        segment: which to scan.
        start: all below is known.
        trusted: whether what lies past the segment's `durable_to` was never reported durable. Then a
            record there whose bytes are not whole is an unfinished write and not a block.
    """
    appendable = segment.identity != b""
    new_from = segment.durable_to if trusted else sys.maxsize
    for number, finding in enumerate(scan(segment.fileno(), segment.number, start), 1):
        match finding:
            case Found(header):
                is_new = header.offset >= new_from
                if is_new and not is_whole(segment, header):
                    _log.warning("block %s is torn, and not taken", header.block.hex())
                    segment.damaged_at.append(header.offset)
                else:
                    if is_new:
                        _write_again(segment, header)
                    _adopt(state, _entry_of(header))
            case Unfinished(offset) if offset >= new_from:
                segment.cut(offset)
            case Unfinished():
                appendable = False
            case Blank(offset):
                segment.begin_at(offset)
            case Damaged(offset, length):
                _log.error("%s: %d bytes at %d cannot be read", segment.path.name, length, offset)
                segment.damaged_at.append(offset)
            case Unreadable(offset, length):
                _log.error(
                    "%s: the disk cannot read all of %d bytes at %d", segment.path.name, length, offset
                )
                segment.unread_from = min(offset, segment.unread_from or offset)
                appendable = False
            case Cut(header):
                _log.error("%s: the record at %d is cut short", segment.path.name, header.offset)
                segment.damaged_at.append(header.offset)
                appendable = False
        if number % _SAVE_EVERY == 0:
            _save(state)
    return appendable


def _write_again(segment: Segment, header: Header) -> None:
    """Have the next sync mean a record too: one that failed before this start may have left it out."""
    try:
        segment.write_again(header)
    except OSError as error:
        _log.warning("block %s cannot be written again: %s", header.block.hex(), error)


def _save(state: Recovered) -> None:
    try:
        state.index.save(segment_rows(state.segments, state.damaged))
    except sqlite3.Error as error:
        _log.warning("the index cannot be saved now: %s", error)


def _freed_since_saved(state: Recovered) -> list[Entry]:
    """Return the entries whose record was freed: those of an index that is older than the segments."""
    holes = {number: segment.holes() for number, segment in state.segments.items()}
    if not any(holes.values()):
        return []
    freed = []
    for number, entries in groupby(state.index.entries_by_place(), key=lambda entry: entry.segment):
        left = iter(holes.get(number, []))
        hole = next(left, None)
        for entry in entries:
            while hole is not None and hole[1] <= entry.offset:
                hole = next(left, None)
            if hole is not None and hole[0] <= entry.offset and not _has_header(state, entry):
                freed.append(entry)
    return [entry for entry in freed if state.index.get(entry.block) == entry]


def _has_header(state: Recovered, entry: Entry) -> bool:
    """Tell whether there is a header, or may be one."""
    try:
        return state.segments[entry.segment].read_header(entry.offset) is not None
    except OSError:
        return True


def _entry_of(header: Header) -> Entry:
    return Entry(header.block, header.segment, header.offset, header.length, header.digest)


def is_whole(segment: Segment, header: Header) -> bool:
    """Tell whether a record's bytes can be read and are what its header says."""
    try:
        data = segment.read(header.offset + PAGE_BYTES, header.length)
    except OSError:
        return False
    return len(data) == header.length and block_digest(data) == header.digest


def winner(older: T, newer: T, is_good: Callable[[T], bool]) -> T:
    """Return which of two records with the same id counts: the later good one, else the later one."""
    return newer if is_good(newer) or not is_good(older) else older


def _adopt(state: Recovered, found: Entry) -> None:
    """Take a record into the index; of two with the same id the later good one wins.

    Two there are when a repair or a delete was interrupted before the older one's space was freed. The
    losing copy of a repair was in quarantine before the newer record was begun.
    """
    known = state.index.get(found.block)
    if known is None:
        state.index.put(found, None)
        return
    older, newer = sorted((known, found), key=lambda entry: (entry.segment, entry.offset))
    if older == newer:
        return
    state.index.put(winner(older, newer, lambda entry: _is_good(state, entry)), known)
    if _is_good(state, newer):
        state.index.free(older)


def _is_good(state: Recovered, entry: Entry) -> bool:
    segment = state.segments.get(entry.segment)
    try:
        header = segment.read_header(entry.offset) if segment else None
    except OSError:
        return False
    return (
        segment is not None
        and header is not None
        and header.block == entry.block
        and is_whole(segment, header)
    )
