"""Which data servers lack which committed blocks. Only what is missing has a row, and what is there has none.

A server that was down is healed from these rows when it is back, without comparing inventories. Besides, the
newest commits are kept in memory: a mediator that was killed could not tell who had not taken them. In the
event loop's thread only; what changes the table is called inside of a transaction.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from metaserver.contents import Contents
from metaserver.store import Store
from wire.errors import InvalidArgument
from wire.messages import Attributes, BlockRecord, Commit, Lag, LagCount, RecentBlocks

RECENT_BLOCKS = 16 * 1024
"""So many of the newest blocks are known; many more than are written while a data server may still answer."""
PAGE_BLOCKS_MAX = 100_000
REACHED_SECONDS = 60.0
"""For so long it is not looked again whether blocks that were passed lack on more servers by now."""
_SERVERS_MAX = 1 << 30


class _Reached(NamedTuple):
    """Until when, and up to where, a server's lag need not be looked through again; as it was when it was."""

    until: float
    lacking: int
    """No block lacks on more servers than this,"""
    block: bytes
    """and none before this one on as many."""


class LagList:
    """The table `lag`, and the blocks committed last."""

    def __init__(self, store: Store, contents: Contents, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._reached: dict[int, _Reached] = {}
        self._contents = contents
        self._recent: deque[bytes] = deque(maxlen=RECENT_BLOCKS)
        self._complete = not store.totals["blocks"]

    def commit(
        self,
        session: int,
        ino: int,
        commit: Commit,
        lag: list[Lag],
        born: Attributes | None = None,
        now_ns: int | None = None,
    ) -> Attributes:
        """Commit, and remember who lacks the new blocks. Raises what Contents.commit raises."""
        fresh = [entry for entry in lag if not self._is_known(entry.block)]
        attributes = self._contents.commit(session, ino, commit, born, now_ns)
        self.note(fresh)
        return attributes

    def note(self, lag: Iterable[Lag]) -> None:
        """Remember who lacks blocks; those that are not committed are left out."""
        rows = [(block, number) for block, numbers in lag if self._is_known(block) for number in numbers]
        if any(number < 1 for _, number in rows):
            raise InvalidArgument("data servers are numbered from 1")
        added = self._store.executemany("INSERT OR IGNORE INTO lag VALUES (?, ?)", rows)
        self._store.totals["lagging_replicas"] += added.rowcount if rows else 0

    def clear(self, server: int, blocks: list[bytes]) -> None:
        """Forget that a server lacked these."""
        if not blocks:
            return
        removed = self._store.executemany(
            "DELETE FROM lag WHERE block = ? AND server = ?", [(block, server) for block in blocks]
        )
        self._store.totals["lagging_replicas"] -= removed.rowcount

    def of_server(self, server: int, limit: int, after: bytes = b"") -> list[BlockRecord]:
        """Return blocks that a server lacks, those with the fewest replicas first; [] only if there are none.

        With `after`, those behind this one, which could not be filled; [] if it does not lag any more.

        Takes time in proportion to the limit, but for one look through the server's lag for each server
        that lags, once in REACHED_SECONDS and when nothing is left behind what was reached: what came to lag
        in front of it since is listed then.
        """
        if limit < 1:
            raise InvalidArgument("a limit is at least 1")
        limit = min(limit, PAGE_BLOCKS_MAX)
        if after:
            (lacking,) = self.lacking_servers([after])
            return self._behind(server, lacking, after + b"\0", limit)
        most, now = self._lagging_servers(_SERVERS_MAX), self._clock()
        found: list[BlockRecord] = []
        reached = self._reached.pop(server, None)
        if reached is not None and now < reached.until and reached.lacking <= most:
            found = self._list(server, reached, limit)
        return found or self._list(server, _Reached(now + REACHED_SECONDS, most, b""), limit)

    def _list(self, server: int, start: _Reached, limit: int) -> list[BlockRecord]:
        """Return blocks that a server lacks, from a place on, and note where the first one was found."""
        found = self._behind(server, start.lacking, start.block, limit)
        if found:
            (lacking,) = self.lacking_servers([found[0].block])
            self._reached[server] = _Reached(start.until, lacking, found[0].block)
        return found

    def _behind(self, server: int, most: int, first: bytes, limit: int) -> list[BlockRecord]:
        """Return blocks that a server lacks, from `first` on if `most` servers lack them, then all others."""
        found: list[BlockRecord] = []
        for lacking in range(most, 0, -1):
            found += self._lacking_on(lacking, server, first, limit - len(found))
            if len(found) == limit:
                break
            first = b""
        return found

    def _lacking_on(self, lacking: int, server: int, first: bytes, limit: int) -> list[BlockRecord]:
        """Return blocks that a server lacks, from `first` on, and exactly so many servers in all."""
        rows = self._store.execute(
            "SELECT l.block, b.length, b.digest FROM lag AS l CROSS JOIN blocks AS b ON b.block = l.block"
            " WHERE l.server = ? AND l.block >= ?"
            " AND (SELECT count(*) FROM lag WHERE block = l.block) = ? ORDER BY l.block LIMIT ?",
            (server, first, lacking, limit),
        ).fetchall()
        return list(map(BlockRecord._make, rows))

    def lacking_servers(self, blocks: list[bytes]) -> list[int]:
        """Return how many servers lack each block."""
        if not self._store.totals["lagging_replicas"]:
            return [0] * len(blocks)
        count = "SELECT count(*) FROM lag WHERE block = ?"
        return [int(self._store.execute(count, (block,)).fetchone()[0]) for block in blocks]

    def counts(self) -> list[LagCount]:
        """Return how much each server lags behind."""
        if not self._store.totals["lagging_replicas"]:
            return []
        rows = self._store.execute(
            "SELECT l.server, count(*), sum(b.length) FROM lag AS l JOIN blocks AS b ON b.block = l.block"
            " GROUP BY l.server ORDER BY l.server"
        ).fetchall()
        return list(map(LagCount._make, rows))

    def blocks_at_risk(self, spared: int) -> int:
        """Return how many blocks more than `spared` servers lack.

        The whole table is looked at only if so many servers lag at all: not while a few are down for days.
        """
        if spared < 0:
            raise InvalidArgument("a number of servers is at least 0")
        if self._lagging_servers(spared + 1) <= spared:
            return 0
        (count,) = self._store.execute(
            "SELECT count(*) FROM (SELECT 1 FROM lag GROUP BY block HAVING count(*) > ?)", (spared,)
        ).fetchone()
        return int(count)

    def _lagging_servers(self, most: int) -> int:
        """Return how many servers lag, `most` at most: one step in the index each."""
        found, server = 0, 0
        while found < most:
            (server,) = self._store.execute(
                "SELECT min(server) FROM lag WHERE server > ?", (server,)
            ).fetchone()
            if server is None:
                break
            found += 1
        return found

    def _is_known(self, block: bytes) -> bool:
        found = self._store.execute("SELECT 1 FROM blocks WHERE block = ?", (block,)).fetchone()
        return found is not None

    def remember(self, records: Iterable[BlockRecord]) -> None:
        """Keep the blocks of a commit as the newest."""
        self._recent.extend(record.block for record in records)

    def recent(self) -> RecentBlocks:
        """Return the newest blocks, and whether none from before the start can be in doubt."""
        return RecentBlocks(self._complete, list(self._recent))

    def vouch(self) -> None:
        """What was committed before the start is in doubt no more."""
        self._complete = True
