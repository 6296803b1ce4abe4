"""All locks of all sessions, in memory: who holds what, who waits, and which calls were answered already.

The arithmetic is in `wire.locks`. Nothing is kept on disk: after a restart the sessions say again what they
hold, and until all have done so nothing new is granted (docs/decisions/0007-locks.md). In the event loop's
thread only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
WAITERS_MAX = 10_000


class Place(NamedTuple):
    """Locks of one file and one kind: only these can stand in each other's way."""

    ino: int
    flock: bool


class Waiting(NamedTuple):
    """Somebody who waits for a lock, and what wakes him."""

    wanted: Lock
    woken: asyncio.Event


class Locks:
    """The table of all locks."""

    def __init__(self, in_grace: Callable[[], bool]) -> None:
        """Begin without locks; while `in_grace` tells so, sessions may hold locks that are not known yet."""
        self._in_grace = in_grace
        self._held: dict[Place, list[Lock]] = {}
        self._waiting: dict[Place, list[Waiting]] = {}
        self._waiters: Counter[tuple[int, int]] = Counter()
        """Who waits for a lock, and how often."""
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
                    self._keep(place, unlocked(held, wanted))
                raise WouldBlock("somebody else holds a lock there")
            after = locked(held, wanted)
            if len(after) > max(LOCKS_A_FILE_MAX, len(held)):
                raise NoLocks(f"a file has at most {LOCKS_A_FILE_MAX} locks")
            self._keep(place, after)

    def unset(self, ticket: Ticket, asked: FileLock) -> None:
        """Give up a range, whatever of it was held."""
        place, range_ = _parse(ticket.session, asked)
        with self._once(ticket) as again:
            if not again:
                self._keep(place, unlocked(self._held.get(place, []), range_))

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
        place, wanted = _parse(session, asked)
        blockers = conflicts(self._held.get(place, []), wanted)
        if not blockers:
            return
        if not place.flock and self._closes_a_circle(wanted, blockers):
            raise Deadlock("the holders of the lock wait for the one who asks")
        if self._waiters.total() >= WAITERS_MAX:
            raise NoLocks(f"{WAITERS_MAX} wait for locks already")
        waiting = Waiting(wanted, asyncio.Event())
        self._waiting.setdefault(place, []).append(waiting)
        self._waiters[wanted.holder] += 1
        try:
            await asyncio.wait_for(waiting.woken.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._waiting[place].remove(waiting)
            if not self._waiting[place]:
                del self._waiting[place]
            self._waiters[wanted.holder] -= 1
            if not self._waiters[wanted.holder]:
                del self._waiters[wanted.holder]

    def _closes_a_circle(self, wanted: Lock, blockers: list[Lock]) -> bool:
        """Look at all that wait only if one of the blockers waits: many mostly wait for one who does not."""
        may_close = any(lock.holder in self._waiters for lock in blockers)
        return may_close and closes_a_circle(wanted, blockers, self._waits())

    def _waits(self) -> Iterator[tuple[Lock, list[Lock]]]:
        for place, waiters in self._waiting.items():
            if not place.flock:
                held = self._held.get(place, [])
                for waiting in waiters:
                    yield waiting.wanted, conflicts(held, waiting.wanted)

    def reclaim(self, session: int, asked: list[FileLock]) -> bool:
        """Take over what a session held before the restart; False, and nothing, if others hold it now."""
        parsed = [_parse(session, lock) for lock in asked]
        if any(conflicts(self._held.get(place, []), lock) for place, lock in parsed):
            return False
        for place, lock in parsed:
            self._keep(place, locked(self._held.get(place, []), lock))
        return True

    def drop_session(self, session: int) -> None:
        """Forget all that a session holds; it has ended."""
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
