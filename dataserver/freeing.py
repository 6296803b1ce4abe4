"""Giving the space of deleted and replaced records back to the disk: which of it, and how.

It frees no record of another block, whatever the index says, and forgets nothing of what is to be freed. One
thread at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import groupby

from dataserver.index import Entry
from dataserver.record import record_bytes
from dataserver.segment import Segment

_log = logging.getLogger(__name__)

UNREADABLE_SECONDS = 600.0
"""A place whose header could not be read, and which is to be freed, is looked at again after so long."""


class Freeing:
    """Frees places, and remembers which of them could not be read."""

    def __init__(self) -> None:
        self._unreadable: set[Entry] = set()
        self._look_again_at = 0.0

    def begin(self) -> None:
        """Begin to go through all that is to be freed."""
        if time.monotonic() >= self._look_again_at:
            self._unreadable.clear()
            self._look_again_at = time.monotonic() + UNREADABLE_SECONDS

    def judge(self, entries: Sequence[Entry], segments: Mapping[int, Segment]) -> dict[Entry, bool | None]:
        """Tell of each place whether it can be freed: never where a record of another block lies.

        None: what lies there cannot be read now.
        """
        return {entry: self._may_free(entry, segments.get(entry.segment)) for entry in entries}

    def _may_free(self, entry: Entry, segment: Segment | None) -> bool | None:
        if segment is None:
            return False
        if entry in self._unreadable:
            return None
        try:
            header = segment.read_header(entry.offset)
        except OSError as error:
            _log.error("%s is not freed at %d: it cannot be read: %s", segment.path, entry.offset, error)
            self._unreadable.add(entry)
            return None
        return header is None or (header.block == entry.block and header.length == entry.length)

    def free(self, judged: dict[Entry, bool | None], segments: Mapping[int, Segment]) -> OSError | None:
        """Free what can be, neighbours together.

        Args:
            judged: what `judge` says of places, in their order; None from now on where the disk fails.
            segments: by number.

        Returns:
            How the disk failed, if it did. What was to be freed there comes again, and holds up no other
            segment.
        """
        failure: OSError | None = None
        freeing = [entry for entry, may in judged.items() if may]
        for number, group in groupby(freeing, key=lambda entry: entry.segment):
            entries = list(group)
            try:
                for offset, length in _runs(entries):
                    segments[number].free(offset, length)
            except OSError as error:
                failure = error
                judged.update(dict.fromkeys(entries))
        return failure


def _runs(entries: list[Entry]) -> list[tuple[int, int]]:
    """Return the places of records of one segment, in order, as (offset, length), neighbours as one."""
    runs: list[tuple[int, int]] = []
    for entry in entries:
        size = record_bytes(entry.length)
        if runs and sum(runs[-1]) == entry.offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + size)
        else:
            runs.append((entry.offset, size))
    return runs
