"""Blocks of which files use little, and exchanging what they use for a new block. Inside of transactions.

Refuses what could change a file: an exchange is carried out only if every extent is still as it was told.
Nothing else of a file changes but its version, so that who finds the old block gone asks for the file's
extents again. In the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from metaserver.blocks import Blocks
from metaserver.extent_rules import Replacement
from metaserver.store import Store
from wire.errors import InvalidArgument
from wire.messages import BlockRecord, Extent, Reference, SparseBlock, SparsePage

PAGE_MOST = 1024
REFERENCES_MOST = 1000
"""A block that more extents refer to is left alone."""
REFERENCES_A_PAGE = 20_000
"""A page ends with the block by which it has so many: in XML-RPC an answer has at most a million elements."""
SHORTEST_BYTES = 64 * 1024
DEAD_SHARE = 0.75
"""Blocks with at least so much that no file refers to are told."""
DATE_SET_SECONDS = 1.0
"""A date that went so much further than the time that passed was set."""


class Compaction:
    """The metadata server's part of compacting."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._blocks = Blocks(store)
        self._date_ahead = self._date_less_time()
        self._steady_since = clock()

    def _date_less_time(self) -> float:
        return self._store.now_ns() / 1e9 - self._clock()

    def _steady_seconds(self) -> float:
        """Return how long the date was not set, as far as is known: since the start at most."""
        ahead = self._date_less_time()
        if abs(ahead - self._date_ahead) > DATE_SET_SECONDS:
            self._date_ahead, self._steady_since = ahead, self._clock()
        return self._clock() - self._steady_since

    def sparse(self, after: bytes, limit: int, min_age_ms: int) -> SparsePage:
        """Look at up to `limit` blocks, in the order of their ids; return those that are mostly dead.

        Left out are those of files that changed within the last `min_age_ms`: a commit in several steps may
        be going to refer to more of them. Nobody can tell which did if the date was set meanwhile.
        """
        if self._steady_seconds() < min_age_ms / 1000:
            return SparsePage(b"", [])
        rows = self._store.execute(
            "SELECT b.block, b.length, b.digest, coalesce((SELECT sum(e.length) FROM extents AS e"
            " WHERE e.block = b.block), 0), b.refs FROM blocks AS b WHERE b.block > ?"
            " ORDER BY b.block LIMIT ?",
            (after, max(1, min(limit, PAGE_MOST))),
        ).fetchall()
        now_ns = self._store.now_ns()
        recent = range(now_ns - min_age_ms * 1_000_000, now_ns + 1)
        found: list[SparseBlock] = []
        count = 0
        for block, length, digest, used, refs in rows:
            if count >= REFERENCES_A_PAGE:
                break
            after = block
            if length < SHORTEST_BYTES or used > length * (1 - DEAD_SHARE) or refs > REFERENCES_MOST:
                continue
            references = self._references(block, recent)
            if references:
                found.append(SparseBlock(BlockRecord(block, length, digest), references))
                count += len(references)
        return SparsePage(after if rows else b"", found)

    def _references(self, block: bytes, recent: range) -> list[Reference]:
        """Return what refers to a block; nothing, if a file of them changed lately or is being removed."""
        rows = self._store.execute(
            "SELECT e.ino, e.offset, e.length, e.block_offset, i.ctime_ns, i.nlink FROM extents AS e"
            " JOIN inodes AS i ON i.ino = e.ino WHERE e.block = ? ORDER BY e.block_offset, e.ino, e.offset",
            (block,),
        ).fetchall()
        if any(ctime_ns in recent or nlink < 0 for *_, ctime_ns, nlink in rows):
            return []
        return [Reference(*row[:4]) for row in rows]

    def exchange(self, session: int, old: bytes, references: Sequence[Reference], new: BlockRecord) -> bool:
        """Let extents refer to a new block, which has their bytes one after the other, in this order.

        Returns:
            False if an extent is not as it was told; nothing is changed then.

        Raises:
            InvalidArgument: the new block cannot hold them, or is not one that the session wrote.
        """
        if sum(reference.length for reference in references) != new.length:
            raise InvalidArgument(f"block {new.block.hex()} has not the length of what it is to hold")
        if not all(self._is_there(old, reference) for reference in references):
            return False
        removed = [Extent(r.offset, r.length, old, r.block_offset) for r in references]
        added, at = [], 0
        for reference in references:
            added.append(Extent(reference.offset, reference.length, new.block, at))
            at += reference.length
        self._blocks.refer(session, [new], added, Replacement(removed, added))
        self._store.executemany(
            "UPDATE extents SET block = ?, block_offset = ? WHERE ino = ? AND offset = ?",
            [(e.block, e.block_offset, r.ino, r.offset) for e, r in zip(added, references, strict=True)],
        )
        self._store.executemany(
            "UPDATE inodes SET version = version + 1 WHERE ino = ?", sorted({(r.ino,) for r in references})
        )
        return True

    def _is_there(self, block: bytes, reference: Reference) -> bool:
        row = self._store.execute(
            "SELECT length, block, block_offset FROM extents WHERE ino = ? AND offset = ?",
            (reference.ino, reference.offset),
        ).fetchone()
        return bool(row == (reference.length, block, reference.block_offset))
