"""Committed blocks and how many extents refer to each. In the event loop's thread, inside of a commit.

Refuses what could make a file refer to bytes that may be deleted or never were: unknown blocks,
blocks that became garbage, records that contradict the witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from metaserver.extent_rules import Replacement
from metaserver.store import Store
from wire.digest import BLOCK_BYTES, DIGEST_BYTES
from wire.errors import InvalidArgument
from wire.messages import BLOCK_ID_BYTES, BlockRecord, Extent

_ADD_ONE = (
    "INSERT OR IGNORE INTO blocks SELECT ?1, ?2, ?3, 1"
    " WHERE NOT EXISTS (SELECT 1 FROM garbage WHERE block = ?1)"
)


def session_of(block: bytes) -> int:
    """Return the session that wrote a block, from its id."""
    return int.from_bytes(block[:8], "big")


def check_record(record: BlockRecord, session: int) -> None:
    """Refuse a record that cannot be of a block that `session` wrote. Raises InvalidArgument."""
    block, length, digest = record
    if len(block) != BLOCK_ID_BYTES or len(digest) != DIGEST_BYTES or not 0 < length <= BLOCK_BYTES:
        raise InvalidArgument(f"the record of block {block.hex()} has a wrong length")
    if session_of(block) != session:
        raise InvalidArgument(f"block {block.hex()} is not of session {session}: it may be deleted any time")


def reference_changes(replacement: Replacement) -> dict[bytes, int]:
    """Return by how much the count of each block's extents changes."""
    changes: Counter[bytes] = Counter(extent.block for extent in replacement.added if extent.block)
    changes.subtract(extent.block for extent in replacement.removed if extent.block)
    return changes


class Blocks:
    """The tables `blocks` and `garbage`, as a commit changes them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def refer(
        self,
        session: int,
        records: Sequence[BlockRecord],
        used: Iterable[Extent],
        replacement: Replacement,
    ) -> None:
        """Check what a commit refers to, and count.

        Args:
            session: whose commit it is.
            records: of the blocks that are new (a known block's record may be repeated).
            used: the commit's extents, without holes.
            replacement: how the file's extents change.

        Raises:
            InvalidArgument: an unknown block, a range outside of its block, a record that contradicts
                a known one, a block that is garbage already.
        """
        if self._takes_one(session, records, replacement):
            return
        fresh = self._fresh(session, records)
        lengths = {block: record.length for block, record in fresh.items()}
        for extent in used:
            assert extent.block is not None
            length = lengths.get(extent.block)
            if length is None:
                length = lengths[extent.block] = self._known_length(extent.block)
            if extent.block_offset + extent.length > length:
                raise InvalidArgument(f"an extent reaches past the end of block {extent.block.hex()}")
        changes = reference_changes(replacement)
        rows = [(block, length, digest, changes.pop(block, 0)) for block, length, digest in fresh.values()]
        self._store.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?)", rows)
        self._store.totals["blocks"] += len(rows)
        self._store.totals["block_bytes"] += sum(row[1] for row in rows)
        self._count(changes)
        self._supersede([(row[0], row[1]) for row in rows if not row[3]])

    def _takes_one(self, session: int, records: Sequence[BlockRecord], replacement: Replacement) -> bool:
        """Do all of it where one new block is referred to once, in place of nothing; else do nothing."""
        removed, added = replacement
        if removed or len(added) != 1 or len(records) != 1:
            return False
        (extent,), (record,) = added, records
        block, length, digest = record
        if extent.block != block or extent.block_offset + extent.length > length:
            return False
        if session_of(block) != session:
            return False
        check_record(record, session)
        if self._store.execute(_ADD_ONE, (block, length, digest)).rowcount != 1:
            return False
        self._store.totals["blocks"] += 1
        self._store.totals["block_bytes"] += length
        return True

    def _fresh(self, session: int, records: Sequence[BlockRecord]) -> dict[bytes, BlockRecord]:
        """Return the records of blocks that were not committed yet, by id."""
        fresh: dict[bytes, BlockRecord] = {}
        for record in records:
            row = self._store.execute(
                "SELECT length, digest FROM blocks WHERE block = ?", (record.block,)
            ).fetchone()
            known = fresh.get(record.block) if row is None else BlockRecord(record.block, *row)
            if known is not None:
                if known != record:
                    raise InvalidArgument(f"block {record.block.hex()} is known with other bytes")
                continue
            check_record(record, session)
            if self._is_garbage(record.block):
                raise InvalidArgument(f"block {record.block.hex()} is garbage already")
            fresh[record.block] = record
        return fresh

    def _is_garbage(self, block: bytes) -> bool:
        found = self._store.execute("SELECT 1 FROM garbage WHERE block = ?", (block,)).fetchone()
        return found is not None

    def _known_length(self, block: bytes) -> int:
        row = self._store.execute("SELECT length FROM blocks WHERE block = ?", (block,)).fetchone()
        if row is None:
            raise InvalidArgument(f"block {block.hex()} is not known (any more)")
        return int(row[0])

    def drop(self, removed: list[Extent]) -> None:
        """Count extents as gone."""
        self._count(reference_changes(Replacement(removed, [])))

    def _count(self, changes: dict[bytes, int]) -> None:
        counted, superseded = [], []
        for block, change in changes.items():
            if not change:
                continue
            row = self._store.execute("SELECT length, refs FROM blocks WHERE block = ?", (block,)).fetchone()
            if row is None:
                continue  # the check tells of such a file, and it can be removed
            length, refs = row
            if refs + change:
                counted.append((refs + change, block))
            else:
                superseded.append((block, length))
        if counted:
            self._store.executemany("UPDATE blocks SET refs = ? WHERE block = ?", counted)
        self._supersede(superseded)

    def _supersede(self, blocks: list[tuple[bytes, int]]) -> None:
        """Move blocks that nothing refers to any more to the garbage."""
        if not blocks:
            return
        now = self._store.now_ns()
        ids = [(block,) for block, _ in blocks]
        self._store.executemany("DELETE FROM blocks WHERE block = ?", ids)
        if self._store.totals["lagging_replicas"]:
            gone = self._store.executemany("DELETE FROM lag WHERE block = ?", ids)
            self._store.totals["lagging_replicas"] -= gone.rowcount
        self._store.executemany(
            "INSERT INTO garbage VALUES (?, ?, ?)", [(block, length, now) for block, length in blocks]
        )
        totals = self._store.totals
        totals["blocks"] -= len(blocks)
        totals["block_bytes"] -= sum(length for _, length in blocks)
        totals["garbage_blocks"] += len(blocks)
