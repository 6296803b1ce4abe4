"""What of a change of a file goes into which commit: one, or several for a very large one.

Pure: no I/O, no clock, no lock; nobody else may change the change meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from fusefs.changes import ChangeSet, PendingBlock
from fusefs.extents import Span
from wire.messages import AttributeChanges, BlockRecord, Commit, Extent

MOST_EXTENTS_A_COMMIT = 20_000
"""A change of more is carried out in steps."""


def divide(
    change: ChangeSet, records: Sequence[BlockRecord], attributes: AttributeChanges, durable: bool
) -> list[Commit]:
    """Return the commits that carry out a change: one, unless it has very many extents.

    Args:
        change: all of its blocks have their records.
        records: of the blocks that are new, in the order in which they are to stand in a commit.
        attributes: what else is to change.
        durable: whether the commits are to be durable.
    """
    extents = [
        Extent(start, end - start, None if source is None else record_of(source).block, source_offset)
        for start, end, source, source_offset in _parted(change)
    ]
    appended = change.append_from
    extend_to = change.extend_to if appended is None else change.extend_unappended_to
    if len(extents) <= MOST_EXTENTS_A_COMMIT:
        return [Commit(change.cut, extents, extend_to, list(records), attributes, durable, appended)]
    commits: list[Commit] = []
    sent: set[bytes] = set()
    for number, step in enumerate(_steps(extents, appended)):
        used = {extent.block for extent in step if extent.block is not None} - sent
        sent |= used
        cut = change.cut if number == 0 else None
        reach = step[-1].offset + step[-1].length
        new = [record for record in records if record.block in used]
        commits.append(Commit(cut, step, reach, new, attributes, durable))
    commits[-1] = commits[-1]._replace(extend_to=extend_to, append_from=appended)
    return commits


def _parted(change: ChangeSet) -> Iterator[Span[PendingBlock | None]]:
    """Yield the spans of a change; one that reaches over where the appended ones begin is parted there."""
    for span in change.map:
        if change.append_from is not None and span.start < change.append_from < span.end:
            yield span.clip(span.start, change.append_from)
            yield span.clip(change.append_from, span.end)
        else:
            yield span


def _steps(extents: list[Extent], append_from: int | None) -> Iterator[list[Extent]]:
    """Part extents into steps of a bounded size; all that was appended stays together in the last one."""
    end = len(extents)
    if append_from is not None:
        end = bisect_left(extents, append_from, key=lambda extent: extent.offset)
    last = max(0, end - 1) // MOST_EXTENTS_A_COMMIT * MOST_EXTENTS_A_COMMIT
    for start in range(0, last, MOST_EXTENTS_A_COMMIT):
        yield extents[start : start + MOST_EXTENTS_A_COMMIT]
    yield extents[last:]


def record_of(block: PendingBlock) -> BlockRecord:
    """Return the id and the witness of a block that has been put, or is sent with its commit."""
    assert block.record is not None, "a block is committed after it was put, or with its bytes"
    return block.record
