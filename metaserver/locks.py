"""All locks of all sessions, in memory: who holds what, who waits, and which calls were answered already.

The arithmetic is in `wire.locks`. Nothing is kept on disk: after a restart the sessions say again what they
hold, and until all have done so nothing new is granted (docs/decisions/0007-locks.md). In the event loop's
thread only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from wire.errors import (
    Deadlock,
    GracePeriod,
    InvalidArgument,
    NoLocks,
    QuorumfsError,
    SequenceError,
    WouldBlock,
)
from wire.locks import LAST, Lock, closes_a_circle, conflicts, locked, unlocked
from wire.messages import FileLock, Ticket

LOCKS_A_FILE_MAX = 10_000
LOCKS_A_SESSION_MAX = 40_000
"""After a restart a session says all its locks by one message, which is bounded, in XML-RPC too."""
WAITERS_MAX = 10_000

Change = Callable[[list[Lock], Lock], list[Lock]]
"""What a call makes of the locks that are held: see wire.locks."""


class Place(NamedTuple):
    """Locks of one file and one kind: only these can stand in each other's way."""

    ino: int
    flock: bool


@dataclass(eq=False)
class Waiting:
    """Somebody who waits for a lock, or did a moment ago: that he was interrupted is told to nobody."""

    number: int
    """Greater than those of all who came before."""
    place: Place
    wanted: Lock
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    """He is to come again, if he waits still."""
    is_in_a_circle: bool = False


class Locks:
    """The table of all locks."""

    def __init__(self, in_grace: Callable[[], bool]) -> None:
        """Begin without locks; while `in_grace` tells so, sessions may hold locks that are not known yet."""
        self._in_grace = in_grace
        self._held: dict[Place, list[Lock]] = {}
        self._counts: Counter[int] = Counter()
        """How many locks each session holds."""
        self._waiting: dict[Place, list[Waiting]] = {}
        self._waiters: Counter[tuple[int, int]] = Counter()
        """Who waits for a lock, and how often."""
        self._numbers = itertools.count(1)
        self._suspecting: list[Waiting] = []
        """Those who closed a circle, if all the others in it wait still: these are asked."""
        self._answered: dict[tuple[int, int], tuple[int, QuorumfsError | None]] = {}

    def set(self, ticket: Ticket, asked: FileLock) -> None:
        """Grant a lock, or raise WouldBlock, GracePeriod, NoLocks, InvalidArgument, SequenceError.

        A whole-file lock that cannot be changed to another kind at once is lost, as flock(2) says.
        """
        place, wanted = _parse(ticket.session, asked)
        with self._once(ticket) as again:
            if again:
                return
            if self._in_grace():
                raise GracePeriod("sessions are still telling what they hold")
            held = self._held.get(place, [])
            if conflicts(held, wanted):
                if place.flock:
                    self._change(place, wanted, unlocked)
                raise WouldBlock("somebody else holds a lock there")
            self._require_room(place, wanted, locked)
            self._change(place, wanted, locked)

    def unset(self, ticket: Ticket, asked: FileLock) -> None:
        """Give up a range, whatever of it was held. Raises NoLocks: what is left would be too many locks."""
        place, range_ = _parse(ticket.session, asked)
        with self._once(ticket) as again:
            if not again:
                self._require_room(place, range_, unlocked)
                self._change(place, range_, unlocked)

    def _require_room(self, place: Place, lock: Lock, change: Change) -> None:
        """Raise NoLocks if a change would make too many of the locks that are held."""
        held = self._held.get(place, [])
        count = len(change(held, lock))
        more = count - len(held)
        if more > 0 and count > LOCKS_A_FILE_MAX:
            raise NoLocks(f"a file has at most {LOCKS_A_FILE_MAX} locks")
        if more > 0 and self._counts[lock.session] + more > LOCKS_A_SESSION_MAX:
            raise NoLocks(f"a mount has at most {LOCKS_A_SESSION_MAX} locks")

    def _change(self, place: Place, lock: Lock, change: Change) -> None:
        """Change what one session holds of a file."""
        held = self._held.get(place, [])
        after = change(held, lock)
        self._counts[lock.session] += len(after) - len(held)
        self._keep(place, after)

    def settle(self, ticket: Ticket) -> None:
        """Do nothing, but refuse older calls of the slot from now on."""
        with self._once(ticket):
            pass

    @contextmanager
    def _once(self, ticket: Ticket) -> Iterator[bool]:
        """Keep how a call ended; yield whether it was made before (and raise as it did then).

        Kept in memory, as the locks are: a call that is sent again after a restart is carried out anew.
        """
        key = ticket.session, ticket.slot
        sequence, error = self._answered.get(key, (-1, None))
        if ticket.sequence < sequence:
            raise SequenceError(
                f"call {ticket.sequence} of slot {ticket.slot} is older than its call {sequence}"
            )
        if ticket.sequence == sequence and error is not None:
            raise error
        try:
            yield ticket.sequence == sequence
        except (WouldBlock, NoLocks) as failed:
            self._answered[key] = ticket.sequence, failed
            raise
        self._answered[key] = ticket.sequence, None

    def holder(self, session: int, asked: FileLock) -> Lock | None:
        """Return a lock that stands in the way of `asked`, if there is one. Raises GracePeriod."""
        place, wanted = _parse(session, asked)
        found = conflicts(self._held.get(place, []), wanted)
        if not found and self._in_grace():
            raise GracePeriod("sessions are still telling what they hold")
        return min(found, key=lambda lock: lock.start) if found else None

    async def wait(self, session: int, asked: FileLock, seconds: float) -> None:
        """Return when a lock may be had, after `seconds` at the latest; grants nothing.

        Raises:
            Deadlock: those who hold it wait, directly or not, for the one who asks.
        """
        waiting = Waiting(next(self._numbers), *_parse(session, asked))
        if not self._blockers(waiting):
            return
        if self._waiters.total() >= WAITERS_MAX:
            raise NoLocks(f"{WAITERS_MAX} wait for locks already")
        self._waiting.setdefault(waiting.place, []).append(waiting)
        self._waiters[waiting.wanted.holder] += 1
        self._look_for_circles(waiting)
        try:
            await asyncio.wait_for(waiting.woken.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._leave(waiting)
        if waiting.is_in_a_circle:
            raise Deadlock("the holders of the lock wait for the one who asks")

    def _blockers(self, waiting: Waiting) -> list[Lock]:
        """Return what stands in the way of somebody who waits."""
        return conflicts(self._held.get(waiting.place, []), waiting.wanted)

    def _leave(self, waiting: Waiting) -> None:
        place, holder = waiting.place, waiting.wanted.holder
        self._waiting[place].remove(waiting)
        if not self._waiting[place]:
            del self._waiting[place]
        self._waiters[holder] -= 1
        if not self._waiters[holder]:
            del self._waiters[holder]
        if waiting in self._suspecting:
            self._suspecting.remove(waiting)

    def _look_for_circles(self, new: Waiting) -> None:
        """Refuse who suspected a circle that is certain now; wake the next in one that `new` closes.

        They look for it in turn, so that all in the circle come again. For the one of them who suspects it
        longest it is certain when all the others have come since: they waited while he did.
        """
        for earlier in self._suspecting:
            if not earlier.woken.is_set() and self._closes_a_circle(earlier, earlier.number):
                earlier.is_in_a_circle = True
                earlier.woken.set()
        if not new.place.flock and self._closes_a_circle(new):
            self._suspecting.append(new)
            holders = {lock.holder for lock in self._blockers(new)}
            for waiting in self._waits(0):
                if waiting.wanted.holder in holders:
                    waiting.woken.set()

    def _closes_a_circle(self, waiting: Waiting, since: int = 0) -> bool:
        """Tell whether somebody waits for himself, by way of those who came after number `since`.

        Look at all that wait only if one of the blockers waits: many mostly wait for one who does not.
        """
        blockers = self._blockers(waiting)
        if not any(lock.holder in self._waiters for lock in blockers):
            return False
        others = ((other.wanted, self._blockers(other)) for other in self._waits(since))
        return closes_a_circle(waiting.wanted, blockers, others)

    def _waits(self, since: int) -> Iterator[Waiting]:
        """Yield those who wait for record locks and came after number `since`."""
        for place, waiters in self._waiting.items():
            if not place.flock:
                yield from (each for each in waiters if each.number > since and not each.woken.is_set())

    def reclaim(self, session: int, asked: list[FileLock]) -> bool:
        """Take over what a session held before the restart; False, and nothing, if others hold it now."""
        parsed = [_parse(session, lock) for lock in asked]
        if any(conflicts(self._held.get(place, []), lock) for place, lock in parsed):
            return False
        for place, lock in parsed:
            self._change(place, lock, locked)
        return True

    def drop_session(self, session: int) -> None:
        """Forget all that a session holds; it has ended."""
        self._counts.pop(session, None)
        for place, held in list(self._held.items()):
            if any(lock.session == session for lock in held):
                self._keep(place, [lock for lock in held if lock.session != session])
        for key in [key for key in self._answered if key[0] == session]:
            del self._answered[key]

    def _keep(self, place: Place, held: list[Lock]) -> None:
        """Keep what is held now; wake those who may have what they want."""
        if held:
            self._held[place] = held
        else:
            self._held.pop(place, None)
        for waiting in self._waiting.get(place, ()):
            if not conflicts(held, waiting.wanted):
                waiting.woken.set()

    def describe(self, limit: int) -> list[dict[str, object]]:
        """Return up to `limit` locks as plain data for people."""
        rows: list[dict[str, object]] = []
        for place, held in self._held.items():
            for lock in held:
                if len(rows) == limit:
                    return rows
                rows.append(
                    {
                        "ino": place.ino,
                        "kind": "flock" if place.flock else "fcntl",
                        "mode": "exclusive" if lock.exclusive else "shared",
                        "start": lock.start,
                        "last": lock.last,
                        "session": lock.session,
                        "pid": lock.pid,
                        "waiting": len(self._waiting.get(place, ())),
                    }
                )
        return rows


def _parse(session: int, lock: FileLock) -> tuple[Place, Lock]:
    """Return where a lock is, and the lock itself. Raises InvalidArgument."""
    if not 0 <= lock.start <= lock.last <= LAST:
        raise InvalidArgument(f"there are no bytes {lock.start} to {lock.last}")
    held = Lock(session, lock.owner, lock.start, lock.last, lock.exclusive, lock.pid)
    return Place(lock.ino, lock.flock), held
