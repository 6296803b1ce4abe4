"""How old this database is, as the data servers know it: one that was put back by hand is found out.

The milestone is a number in the database that grows by one in each period with changes, and that data servers
keep: if one of them has kept a higher one, the database is an older state of itself. Nothing is held up for
it, so that what was put back within the last period is not noticed. It must not talk to data servers: the
mediator carries the numbers to and fro. In the event loop's thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from metaserver.fence import NUMBER_LIMIT
from metaserver.store import Store
from wire.errors import Busy
from wire.messages import Milestone

logger = logging.getLogger("metaserver")


def newest_of(database: str, kept: Sequence[Milestone]) -> int:
    """Return the highest milestone of a database that was kept, 0 if there is none.

    One that no database can have got to is damage, and is left out: none could ever be as far.
    """
    numbers = (number for name, number in kept if name == database and number < NUMBER_LIMIT)
    return max(numbers, default=0)


class Milestones:
    """The milestone of one open database.

    Attributes:
        begin_anew: called with the milestone that the database is behind.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken_at = -1
        """How many rows had been changed when the last milestone was taken, with it."""
        self._behind = False
        """Whether it was found to be an older one."""
        self.begin_anew: Callable[[int], None] = lambda kept: None

    def take(self) -> Milestone:
        """Return how far the database is; one further if anything was changed since. Raises Busy."""
        if self._store.in_doubt:
            raise Busy("it is not known yet whether the metadata database is an older one")
        if self._store.changed_rows() != self._taken_at:
            self._store.change(self._raise)
            self._taken_at = self._store.changed_rows()
        return Milestone(self._database(), self._number())

    def _raise(self) -> None:
        self._store.execute("INSERT OR REPLACE INTO counters VALUES ('milestone', ?)", (self._number() + 1,))

    def compare(self, kept: Sequence[Milestone], *, enough: bool) -> None:
        """Take in what data servers have kept. Raises Busy: the database is older, and begins anew."""
        database = self._database()
        known = newest_of(database, kept) if database else 0
        if known > self._number():
            if not self._behind:  # it may be compared again before it has begun anew
                logger.warning(
                    "the metadata database is an older one: it is at milestone %d, and data servers know of "
                    "%d; all sessions end, and nothing is deleted that it does not know",
                    self._number(),
                    known,
                )
            self._behind = True
            self.begin_anew(known)
            raise Busy("the metadata database is an older one, and begins anew")
        if enough:
            self._store.in_doubt = False

    def _database(self) -> str:
        row = self._store.execute("SELECT value FROM facts WHERE name = 'database'").fetchone()
        return "" if row is None else str(row[0])

    def _number(self) -> int:
        row = self._store.execute("SELECT next FROM counters WHERE name = 'milestone'").fetchone()
        return 0 if row is None else int(row[0])
