"""What the mediator asks about blocks: which are committed, which are garbage, which files have them.

Changes nothing but the garbage table. In the event loop's thread only.
"""

from __future__ import annotations

from typing import Any

from metaserver.blocks import session_of
from metaserver.fence import OLDER_FACT
from metaserver.sessions import Sessions
from metaserver.store import Store
from wire.errors import InvalidArgument
from wire.messages import BLOCK_ID_BYTES, BlockRecord

PAGE_BLOCKS_MAX = 100_000
BYTES_AN_INODE = 1024
"""A file with a name, one extent and one block takes about so much of the database."""


class Bookkeeping:
    """Queries over blocks, and the garbage."""

    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._execute = store.execute
        self._sessions = sessions

    def blocks(self, after: bytes, limit: int) -> list[BlockRecord]:
        """Return up to `limit` committed blocks in the order of their ids, all greater than `after`."""
        rows = self._execute(
            "SELECT block, length, digest FROM blocks WHERE block > ? ORDER BY block LIMIT ?",
            (after, _bounded(limit)),
        ).fetchall()
        return list(map(BlockRecord._make, rows))

    def witnesses(self, blocks: list[bytes]) -> list[BlockRecord | None]:
        """Return the committed record of each block, None where there is none."""
        return [self._witness(block) for block in blocks]

    def _witness(self, block: bytes) -> BlockRecord | None:
        row = self._execute("SELECT length, digest FROM blocks WHERE block = ?", (block,)).fetchone()
        return None if row is None else BlockRecord(block, *row)

    def garbage(self, limit: int, min_age_ms: int, after: bytes = b"") -> list[bytes]:
        """Return up to `limit` blocks that are garbage since `min_age_ms` at least, oldest first.

        What is so since a time that is still to come, as the date was wrong, is as good as old. Those up to
        `after` are left out, but if that is no garbage by now, or only to come.
        """
        now_ns, most = self._store.now_ns(), _bounded(limit)
        known = self._execute(
            "SELECT since_ns, block FROM garbage WHERE block = ? AND since_ns <= ?", (after, now_ns)
        ).fetchone()
        old = self._execute(
            "SELECT block FROM garbage WHERE (since_ns, block) > (?, ?) AND since_ns <= ?"
            " ORDER BY since_ns, block LIMIT ?",
            (*(known or (-(2**63), b"")), now_ns - min_age_ms * 1_000_000, most),
        ).fetchall()
        to_come = self._execute(
            "SELECT block FROM garbage WHERE since_ns > ? ORDER BY since_ns LIMIT ?",
            (now_ns, most - len(old)),
        ).fetchall()
        return [block for (block,) in [*old, *to_come]]

    def forget(self, blocks: list[bytes]) -> None:
        """Drop garbage blocks that no data server has any more; others are left as they are."""
        for block in blocks:
            removed = self._execute("DELETE FROM garbage WHERE block = ?", (block,))
            self._store.totals["garbage_blocks"] -= removed.rowcount

    def collectable(self, blocks: list[bytes]) -> list[bytes]:
        """Return those of `blocks` that may be deleted.

        A block of a session that this database never gave a number is not: it tells that the database is
        older than the block, or that the data servers belong to another one. Nor is one behind a fence
        (metaserver.fence): it is newer than the copy that the database was put back from. While it is not
        known whether the database is an older one, only the garbage that it knows may be deleted.
        """
        (next_session,) = self._execute("SELECT next FROM counters WHERE name = 'session'").fetchone()
        return [block for block in blocks if self._is_collectable(block, next_session)]

    def _is_collectable(self, block: bytes, next_session: int) -> bool:
        if self._execute("SELECT 1 FROM garbage WHERE block = ?", (block,)).fetchone() is not None:
            return True
        if self._store.in_doubt:
            return False
        session = session_of(block)
        if len(block) != BLOCK_ID_BYTES or self._sessions.lives(session) or not 0 < session < next_session:
            return False
        if self._execute("SELECT 1 FROM blocks WHERE block = ?", (block,)).fetchone() is not None:
            return False
        fenced = self._execute("SELECT 1 FROM fences WHERE ? BETWEEN first AND last LIMIT 1", (session,))
        return fenced.fetchone() is None

    def abandon(self, session: int, blocks: list[BlockRecord]) -> None:
        """Let blocks of a session that were never committed be garbage, so that no commit may name them."""
        for block, length, _ in blocks:
            if len(block) != BLOCK_ID_BYTES or session_of(block) != session or self._witness(block):
                continue
            added = self._execute(
                "INSERT OR IGNORE INTO garbage VALUES (?, ?, ?)", (block, length, self._store.now_ns())
            )
            self._store.totals["garbage_blocks"] += added.rowcount

    def referenced_bytes(self) -> int:
        """Return how many bytes of blocks the files refer to."""
        (total,) = self._execute("SELECT coalesce(sum(allocated_bytes), 0) FROM inodes").fetchone()
        return int(total)

    def files_of_block(self, block: bytes) -> list[int]:
        """Return the inodes whose contents refer to a block."""
        rows = self._execute("SELECT DISTINCT ino FROM extents WHERE block = ? ORDER BY ino", (block,))
        return [row[0] for row in rows.fetchall()]

    def found_older_ns(self) -> int:
        """Return when this was found to be an older state of the database; 0 if it was not, or was heeded."""
        row = self._execute("SELECT value FROM facts WHERE name = ?", (OLDER_FACT,)).fetchone()
        return 0 if row is None else int(row[0])

    def counts(self) -> dict[str, Any]:
        """Return how many of everything there are, and how much room is left on the database's disk."""
        free_bytes = self._store.free_bytes()
        known = self._execute("SELECT value FROM facts WHERE name = 'database'").fetchone()
        return {
            **self._store.totals,
            "sessions": len(self._store.sessions),
            "free_bytes": free_bytes,
            "free_inodes": free_bytes // BYTES_AN_INODE,
            "database": "" if known is None else known[0],
            "in_doubt": self._store.in_doubt,
            "found_older": self.found_older_ns() > 0,
            "fenced": self._execute("SELECT 1 FROM fences LIMIT 1").fetchone() is not None,
        }


def _bounded(limit: int) -> int:
    if limit < 1:
        raise InvalidArgument("a limit is at least 1")
    return min(limit, PAGE_BLOCKS_MAX)
