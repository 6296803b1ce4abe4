"""A number in one file, guarded by a lock of another: what a program with a lock file does.

A client that was cut off for longer than its lease must not commit what it has written under a lock that
others have by then, whatever file it is of. One greenlet of an actor at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.sim.cluster import World
from tests.sim.handles import open_now
from tests.twins import LibraryPlace
from wire.errors import QuorumfsError
from wire.messages import FileLock

if TYPE_CHECKING:
    from tests.sim.actors import Actor

LOCK_SLOT, NUMBER_SLOT = 12, 13
DIGITS = 20


class Guarded:
    """The number: each client that holds the lock file's lock may add one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kind = world.rng.choice(["flock", "fcntl"])
        self._counts: Counter[tuple[str, int]] = Counter()
        """How often each number was written in each file, and its close acknowledged."""

    def count_up(self, actor: Actor, place: LibraryPlace) -> None:
        """Lock the one file, and read and write the other."""
        world, slots = self._world, list[int]()
        try:
            open_now(place, LOCK_SLOT, "lock-file", os.O_RDWR)
            slots.append(LOCK_SLOT)
            self._count_up_locked(actor, place, slots)
        except (QuorumfsError, OSError) as error:
            world.note("failed", f"{actor.name} guarded: {type(error).__name__}: {error}")
        finally:
            actor.holding = False
            for slot in reversed(slots):
                self._close(actor, place, slot)

    def _count_up_locked(self, actor: Actor, place: LibraryPlace, slots: list[int]) -> None:
        world, session = self._world, place.filesystem._namespace._session
        lock_file = place.slots[LOCK_SLOT]
        lock = FileLock(lock_file.inode.ino, self._kind == "flock", actor.number, 0, 2**63 - 1, True, 0)
        begun_in = session.number
        place.filesystem.locks.set(lock_file, lock)
        losses = world.power_losses
        path = f"guarded-{losses}"  # a power loss undoes what was not synced
        open_now(place, NUMBER_SLOT, path, os.O_RDWR)
        slots.append(NUMBER_SLOT)
        value = int(place.pread(NUMBER_SLOT, 0, DIGITS) or b"0") + 1
        if session.number != begun_in:
            return  # what is opened in a new session cannot be told from what is opened without a lock
        steps = [partial(self._write, place, value), partial(self._hold, actor)]
        for step in actor.rng.sample(steps, 2):
            step()
        slots.remove(NUMBER_SLOT)
        place.close(NUMBER_SLOT)
        if losses == world.power_losses:
            self._counts[path, value] += 1
            world.note("done", f"{actor.name} counted {value} in {path}")
            if self._counts[path, value] > 1:
                world.problem(f"{actor.name} counted {value} in {path} under a lock file, as another did")
        place.filesystem.locks.unset(lock_file, lock._replace(exclusive=False))

    def _write(self, place: LibraryPlace, value: int) -> None:
        place.ftruncate(NUMBER_SLOT, 0)  # so that age does not commit it
        place.pwrite(NUMBER_SLOT, 0, b"%0*d" % (DIGITS, value))

    def _hold(self, actor: Actor) -> None:
        actor.holding = True
        self._world.scheduler.sleep(actor.rng.choice([0.0, 1.0, 20.0]))
        while actor.name in self._world.exiles:  # it does not know that its lock goes to others meanwhile
            self._world.scheduler.sleep(1.0)

    def _close(self, actor: Actor, place: LibraryPlace, slot: int) -> None:
        try:
            if slot == LOCK_SLOT:
                place.filesystem.locks.closing(place.slots[slot], actor.number)
            place.close(slot)
        except (QuorumfsError, OSError) as error:
            self._world.note("failed", f"{actor.name} close guarded: {type(error).__name__}: {error}")
