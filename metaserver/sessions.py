"""Sessions: their rows in the database; their leases and open files in memory.

A session lives until it is closed or its lease has passed without a renewal. After a restart of the
server all leases begin anew, and until every session has said again what it has open, or can be
held to have had the time for it, any inode may be open (`may_be_open`). Knows nothing of what an open
file protects. In the event loop's thread only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from metaserver.store import Store
from wire.errors import Busy, SessionUnknown
from wire.messages import SessionInfo

CLOCKS_APART = 0.1
"""A mount's clock may be slower than this server's by such a share: it is told so much less than it has."""
SESSIONS_MAX = 10_000
TOLD_OPEN_MAX = 250_000
"""A session may say of so many inodes that it has them open: each takes memory, be there one or not."""
NAME_CHARACTERS = 255
CLOSED_REMEMBERED = 1024
"""So many inodes that a session closed last are known. A copy of an open that comes later than that holds its
file until the session ends, which keeps room, and loses nothing."""


@dataclass
class Lease:
    """What is known of a session in memory only. Times are of the monotonic clock, in seconds."""

    renewed: float
    reclaimed: bool
    first_renewal: float | None = None
    inodes: dict[int, int] = field(default_factory=dict)
    """What it has open, each with the number of the newest close that was made before it was opened."""
    closed: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """What it closed last, and by which close."""


class Sessions:
    """All living sessions.

    Attributes:
        epoch: a number that grows at each start of the server.
    """

    def __init__(
        self,
        store: Store,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with those of the database; more may go on if it was put back from a copy a moment ago."""
        self._store = store
        self._lease_seconds = lease_seconds
        self._clock = clock
        self.epoch = store.epoch
        now = clock()
        self._leases = {session: Lease(now, reclaimed=False) for session in store.sessions}
        self._unreclaimed = set(self._leases)
        self._unknown_until = now + lease_seconds if store.was_put_back else now
        """Until then mounts may rely on sessions that are not known: the next renewal tells them."""
        self._holders: dict[int, int] = {}
        self._asked: dict[int, int] = {}
        """Sessions that may have opened files without a call, each with the number that it is asked with."""
        self._last_asked = store.now_ns()
        """Epochs are next to each other: counted from there, two starts would ask with the same numbers."""
        self._on_end: list[Callable[[int], None]] = []

    def on_end(self, forget: Callable[[int], None]) -> None:
        """Call `forget` with the number of each session that ends."""
        self._on_end.append(forget)

    def open(self, name: str) -> SessionInfo:
        """Begin a session. Raises Busy when there are too many."""
        if len(self._leases) >= SESSIONS_MAX:
            raise Busy(f"there are {SESSIONS_MAX} sessions already")
        session = self._store.change(self._insert, name[:NAME_CHARACTERS])
        self._store.sessions.add(session)
        self._leases[session] = Lease(self._clock(), reclaimed=True)
        return SessionInfo(session, int(self._lease_seconds * (1 - CLOCKS_APART) * 1000), self.epoch)

    def _insert(self, name: str) -> int:
        session = self._store.take_session_number()
        self._store.execute("INSERT INTO sessions VALUES (?, ?, ?)", (session, name, self._store.now_ns()))
        return session

    def end(self, session: int) -> set[int]:
        """End a session (an unknown one has ended already); return the inodes that it had open."""
        lease = self._leases.get(session)
        if lease is None:
            return set()
        self._store.change(self._delete, session)
        self._store.sessions.discard(session)
        self._unreclaimed.discard(session)
        self._asked.pop(session, None)
        held = set(lease.inodes)
        for ino in held:
            self._let_go(lease, ino)
        del self._leases[session]
        for forget in self._on_end:
            forget(session)
        return held

    def _delete(self, session: int) -> None:
        for table in ("slots", "rings"):
            self._store.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
        self._store.execute("DELETE FROM sessions WHERE session = ?", (session,))

    def renew(self, session: int) -> int:
        """Begin a session's lease anew; return the epoch. Raises SessionUnknown."""
        lease = self._lease(session)
        lease.renewed = self._clock()
        if lease.first_renewal is None:
            lease.first_renewal = lease.renewed
        return self.epoch

    def _lease(self, session: int) -> Lease:
        lease = self._leases.get(session)
        if lease is None:
            raise SessionUnknown(f"session {session} is not known (any more)")
        return lease

    def require(self, session: int) -> None:
        """Raise SessionUnknown unless a session lives."""
        self._lease(session)

    def name(self, session: int) -> str:
        """Return what a session's client calls itself, for people."""
        row = self._store.execute("SELECT name FROM sessions WHERE session = ?", (session,)).fetchone()
        return "" if row is None else str(row[0])

    def has_reclaimed(self, session: int) -> bool:
        """Tell whether a session has said what it holds since the restart. Raises SessionUnknown."""
        return self._lease(session).reclaimed

    def is_awaited(self, session: int) -> bool:
        """Tell whether nothing was granted since the restart that a session could have held before."""
        return session in self._unreclaimed

    def may_reclaim(self) -> bool:
        """Tell whether a session may hold what it has not said since the restart."""
        return bool(self._unreclaimed) or self._clock() < self._unknown_until

    def count(self) -> int:
        """Return how many sessions live."""
        return len(self._leases)

    def lives(self, session: int) -> bool:
        """Tell whether a session lives."""
        return session in self._leases

    def reclaim(self, session: int, inodes: Iterable[int], closes: int) -> None:
        """Note what a session had open before the restart. Raises SessionUnknown; Busy: it is too much."""
        lease = self._lease(session)
        self._hold_all(session, inodes, closes)
        lease.renewed = self._clock()
        lease.reclaimed = True
        self._unreclaimed.discard(session)

    def hold(self, session: int, ino: int, closes: int = 0) -> None:
        """Count an inode as opened by a session, once; not for a late copy of a call. Raises SessionUnknown.

        Args:
            session: its number.
            ino: the inode.
            closes: the number of its newest close before that; 0 of a new inode, which none can name.
        """
        lease = self._lease(session)
        if closes < lease.closed.get(ino, 0):
            return
        if ino not in lease.inodes:
            self._holders[ino] = self._holders.get(ino, 0) + 1
        lease.inodes[ino] = max(closes, lease.inodes.get(ino, 0))

    def _hold_all(self, session: int, inodes: Iterable[int], closes: int) -> None:
        known, inodes = self._lease(session).inodes, set(inodes)
        if len(known) + sum(ino not in known for ino in inodes) > TOLD_OPEN_MAX:
            raise Busy(f"a mount tells of at most {TOLD_OPEN_MAX} open files: close some of them")
        for ino in inodes:
            self.hold(session, ino, closes)

    def ask_opens(self, session: int) -> None:
        """Take any inode to be open in a session (if it lives) until it has told which it has."""
        if session in self._leases:
            self._last_asked += 1  # of no earlier time, nor of an earlier start: a late answer is none
            self._asked[session] = self._last_asked

    def asks_opens(self, session: int) -> int:
        """Return the number with which a session is asked what it has open; 0 if it is not."""
        return self._asked.get(session, 0)

    def tell_open(self, session: int, inodes: Iterable[int], asked: int, closes: int) -> None:
        """Note what a session has open; with the number it was asked with, all.

        Raises SessionUnknown; Busy: it is too much, and nothing of it was noted.
        """
        self._hold_all(session, inodes, closes)
        if asked and self._asked.get(session) == asked:
            del self._asked[session]

    def let_go(self, session: int, inodes: Iterable[int], number: int) -> None:
        """Count inodes as not opened by a session any more; not those opened since its close of this number.

        Raises SessionUnknown.
        """
        lease = self._lease(session)
        for ino in inodes:
            if lease.inodes.get(ino, number) < number:
                self._let_go(lease, ino)
            lease.closed[ino] = max(number, lease.closed.pop(ino, 0))
            if len(lease.closed) > CLOSED_REMEMBERED:
                lease.closed.popitem(last=False)

    def _let_go(self, lease: Lease, ino: int) -> None:
        del lease.inodes[ino]
        self._holders[ino] -= 1
        if not self._holders[ino]:
            del self._holders[ino]

    def may_be_open(self, ino: int) -> bool:
        """Tell whether a session has an inode open, or may have it open and could not say so yet."""
        return ino in self._holders or bool(self._asked) or self.may_reclaim()

    def is_open_elsewhere(self, session: int, ino: int) -> bool:
        """Tell whether another session has an inode open, as far as is known; see `others_are_telling`."""
        own = ino in self._leases[session].inodes if session in self._leases else False
        return self._holders.get(ino, 0) > own

    def others_are_telling(self, session: int) -> bool:
        """Tell whether another session may have inodes open and could not say so yet."""
        return self.may_reclaim() or any(asked != session for asked in self._asked)

    def held(self) -> frozenset[int] | None:
        """Return the inodes that sessions have open now; None while any may be (see `may_be_open`)."""
        return None if self._asked or self.may_reclaim() else frozenset(self._holders)

    def forgive(self, seconds: float) -> None:
        """Lengthen all leases by a time in which this server could not have heard of anybody.

        None ends later than if it were renewed now: one may have been already, by what waited meanwhile.
        """
        now = self._clock()
        for lease in self._leases.values():
            lease.renewed = min(lease.renewed + seconds, now)
            if lease.first_renewal is not None:
                lease.first_renewal = min(lease.first_renewal + seconds, now)

    def expired(self) -> list[int]:
        """Return the sessions whose lease has passed.

        A session that renews without ever reclaiming has learnt the new epoch; one lease after its
        first renewal it counts as having nothing to reclaim.
        """
        limit = self._clock() - self._lease_seconds
        for session in list(self._unreclaimed):
            first = self._leases[session].first_renewal
            if first is not None and first < limit:
                self._unreclaimed.discard(session)
        return [session for session, lease in self._leases.items() if lease.renewed < limit]

    def is_alone(self, session: int) -> bool:
        """Tell whether there is no other session."""
        return self._leases.keys() == {session}

    def describe(self, limit: int) -> list[dict[str, object]]:
        """Return up to `limit` sessions as plain data for people."""
        now = self._clock()
        rows = self._store.execute("SELECT session, name FROM sessions ORDER BY session LIMIT ?", (limit,))
        return [
            {
                "session": session,
                "name": name,
                "open_files": len(self._leases[session].inodes),
                "renewed_seconds_ago": round(now - self._leases[session].renewed, 3),
            }
            for session, name in rows.fetchall()
        ]
