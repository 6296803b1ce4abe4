"""The arithmetic of file locks: conflict, split, merge, upgrade and downgrade of ranges. Pure.

Used at both ends: the metadata server decides with it, a mount follows what its programs hold. A list of
locks is of one file and of one kind (record locks as fcntl(2), or whole files as flock(2)); the locks of
one owner never overlap in it. Each function is linear in its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LAST = 2**63 - 1
"""The last byte that a lock can cover."""


class Lock(NamedTuple):
    """Bytes `start` to `last` (included) are locked by an owner of a session."""

    session: int
    owner: int
    start: int
    last: int
    exclusive: bool
    pid: int

    @property
    def holder(self) -> tuple[int, int]:
        """Who holds it: the same holder's locks never stand in each other's way."""
        return self.session, self.owner


def conflicts(held: Iterable[Lock], wanted: Lock) -> list[Lock]:
    """Return the locks of others that `wanted` cannot stand beside."""
    return [
        lock
        for lock in held
        if lock.holder != wanted.holder
        and lock.start <= wanted.last
        and wanted.start <= lock.last
        and (lock.exclusive or wanted.exclusive)
    ]


def unlocked(held: Iterable[Lock], range_: Lock) -> list[Lock]:
    """Return what is held after the holder of `range_` has given up its bytes."""
    left: list[Lock] = []
    for lock in held:
        if lock.holder != range_.holder or lock.last < range_.start or range_.last < lock.start:
            left.append(lock)
            continue
        if lock.start < range_.start:
            left.append(lock._replace(last=range_.start - 1))
        if range_.last < lock.last:
            left.append(lock._replace(start=range_.last + 1))
    return left


def locked(held: Iterable[Lock], wanted: Lock) -> list[Lock]:
    """Return what is held after `wanted` was granted; it replaces what its holder had in its range."""
    start, last = wanted.start, wanted.last
    result: list[Lock] = []
    for lock in unlocked(held, wanted):
        same = lock.holder == wanted.holder and lock.exclusive == wanted.exclusive
        if same and lock.last + 1 == wanted.start:
            start = lock.start
        elif same and wanted.last + 1 == lock.start:
            last = lock.last
        else:
            result.append(lock)
    result.append(wanted._replace(start=start, last=last))
    return result


def weakened(held: Iterable[Lock], wanted: Lock) -> list[Lock]:
    """Return what is held whether or not `wanted` was granted.

    What it would make less exclusive is shared then.
    """
    result = list(held)
    if wanted.exclusive:
        return result
    for lock in list(result):
        start, last = max(lock.start, wanted.start), min(lock.last, wanted.last)
        if lock.holder == wanted.holder and lock.exclusive and start <= last:
            result = locked(result, wanted._replace(start=start, last=last))
    return result


def closes_a_circle(wanted: Lock, blockers: Iterable[Lock], waits: Iterable[tuple[Lock, list[Lock]]]) -> bool:
    """Tell whether waiting for `blockers` would be for ever.

    Args:
        wanted: what would wait.
        blockers: what stands in its way.
        waits: all that wait already, each with what stands in its way.
    """
    edges: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for waiting, others in waits:
        edges.setdefault(waiting.holder, set()).update(lock.holder for lock in others)
    seen: set[tuple[int, int]] = set()
    ahead = [lock.holder for lock in blockers]
    while ahead:
        holder = ahead.pop()
        if holder == wanted.holder:
            return True
        if holder not in seen:
            seen.add(holder)
            ahead.extend(edges.get(holder, ()))
    return False
