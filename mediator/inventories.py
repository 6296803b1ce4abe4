"""What the metadata has committed, held against what a data server has. Pure; safe in any thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wire.messages import BlockRecord


class Difference(NamedTuple):
    """What two pages differ in, up to `cursor` (None: both lists have ended)."""

    lacking: list[BlockRecord]
    differing: list[BlockRecord]
    extra: list[bytes]
    cursor: bytes | None
    committed: int
    """So many committed blocks are up to there."""


def compare(committed: Sequence[BlockRecord], held: Sequence[BlockRecord]) -> Difference:
    """Merge two sorted pages that begin after the same id; what lies beyond the shorter one waits.

    Args:
        committed: a page of the metadata server's blocks; empty if there are no more.
        held: a page of the data server's inventory; empty if there are no more.
    """
    ends = [records[-1].block for records in (committed, held) if records]
    cursor = min(ends) if ends else None
    wanted = {r.block: r for r in committed if cursor is None or r.block <= cursor}
    there = {r.block: r for r in held if cursor is None or r.block <= cursor}
    return Difference(
        [record for block, record in wanted.items() if block not in there],
        [record for block, record in wanted.items() if block in there and there[block] != record],
        [block for block in there if block not in wanted],
        cursor,
        len(wanted),
    )


def must_compare(held: int, committed: int, lagging: int, garbage: int) -> bool:
    """Tell from numbers of blocks whether a server lacks, or has, others than those that are known of.

    Args:
        held: how many blocks of files the server has.
        committed: how many it should have.
        lagging: how many of these it is known to lack.
        garbage: how many more it may still have.
    """
    return not committed - lagging <= held <= committed - lagging + garbage
