"""Files that all clients change: a log that they append to, and a counter that they add to under a lock.

Once everybody is quiet, they are held against what was acknowledged. One greenlet of an actor at a time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.sim.cluster import Failure, World
from tests.sim.guarded import Guarded
from tests.sim.handles import open_now, read_if_there
from tests.sim.recorded import Recorded
from tests.twins import LibraryPlace
from wire.errors import QuorumfsError
from wire.messages import FileLock

if TYPE_CHECKING:
    from tests.sim.actors import Actor

RECORD_BYTES = 32
OTHER_OWNER = 1000
"""Of locks; none of the clients is it."""


class Shared:
    """A log that all append to with fsync, and a counter that all add to under a lock."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: set[bytes] = set()
        self.attempted: set[bytes] = set()
        self.counted = 0
        self._counts: set[int] = set()
        """So many additions were acknowledged; `tried` so many were begun."""
        self.tried = 0
        self._number = 0
        self.recorded = Recorded(world)
        self.guarded = Guarded(world)

    def add_record(self, actor: Actor, place: LibraryPlace) -> None:
        """Append one record with O_APPEND and fsync it."""
        self._number += 1
        record = b"%s %d" % (actor.name.encode(), self._number)
        record = record.ljust(RECORD_BYTES - 1, b".") + b"\n"
        self.attempted.add(record)

        def act() -> None:
            open_now(place, 3, "log", os.O_RDWR | os.O_APPEND)
            try:
                place.pwrite(3, 0, record)
                place.fsync(3)
            finally:
                place.close(3)
            self.acknowledged.add(record)
            self.world.note("done", f"{actor.name} added {record[:-1].decode()}")

        actor.deeds.append(record[:-1], act)

    def count_up(self, actor: Actor, place: LibraryPlace) -> None:
        """Add one to the counter, under an exclusive record lock."""
        if not self._open_to_lock(actor, place, 4, "counter"):
            return
        try:
            handle = place.slots[4]
            lock = FileLock(handle.inode.ino, False, actor.number, 0, 2**63 - 1, True, actor.number)
            place.filesystem.locks.set(handle, lock)
            value = int(place.pread(4, 0, 20) or b"0")
            actor.holding = True
            self.world.scheduler.sleep(actor.rng.choice([0.0, 0.0, 0.0, 1.0, 20.0]))
            while actor.name in self.world.exiles:  # it does not know that its lock goes to others meanwhile
                self.world.scheduler.sleep(1.0)
            self.tried += 1
            place.pwrite(4, 0, b"%020d" % (value + 1))
            place.fsync(4)
            self.counted += 1
            if value + 1 in self._counts:
                self.world.problem(f"{actor.name} counted {value + 1} under its lock, and so did another")
            self._counts.add(value + 1)
            self.world.note("done", f"{actor.name} counted {value + 1}")
            place.filesystem.locks.unset(handle, lock._replace(exclusive=False))
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{actor.name} count: {type(error).__name__}: {error}")
        finally:
            actor.holding = False
            self._close_locked(actor, place, 4)

    def hold_own(self, actor: Actor, place: LibraryPlace) -> None:
        """Lock a file that nobody else wants, and ask the server after a while whether it is held."""
        if not self._open_to_lock(actor, place, 7, f"own-{actor.name}"):
            return
        try:
            handle = place.slots[7]
            lock = FileLock(handle.inode.ino, False, actor.number, 0, 2**63 - 1, True, actor.number)
            place.filesystem.locks.set(handle, lock)
            self.world.scheduler.sleep(actor.rng.choice([0.0, 1.0, 4.0]))
            held = place.filesystem.locks.holder(lock._replace(owner=OTHER_OWNER))
            place.filesystem.locks.confirm(handle)
            if held is None:
                self.world.problem(f"{actor.name} holds a lock of which the metadata server knows nothing")
            place.filesystem.locks.unset(handle, lock._replace(exclusive=False))
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{actor.name} own lock: {type(error).__name__}: {error}")
        finally:
            self._close_locked(actor, place, 7)

    def _open_to_lock(self, actor: Actor, place: LibraryPlace, slot: int, name: str) -> bool:
        try:
            open_now(place, slot, name, os.O_RDWR)
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{actor.name} open {name}: {type(error).__name__}: {error}")
            return False
        return True

    def _close_locked(self, actor: Actor, place: LibraryPlace, slot: int) -> None:
        try:
            place.filesystem.locks.closing(place.slots[slot], actor.number)
            place.close(slot)
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{actor.name} close what it locked: {type(error).__name__}: {error}")

    def check(self, place: LibraryPlace) -> None:
        """Hold the log and the counter against what was acknowledged. Raises QuorumfsError."""
        log = read_if_there(place, 5, "log") or b""
        records = [log[i : i + RECORD_BYTES] for i in range(0, len(log), RECORD_BYTES)]
        for record in records:
            if record not in self.attempted:
                raise Failure(f"the log has a torn or foreign record {record!r}")
        if len(set(records)) != len(records):
            twice = next(r for r in records if records.count(r) > 1)
            raise Failure(f"the log has a record twice: {twice!r}")
        if missing := self.acknowledged - set(records):
            raise Failure(f"the log lacks {len(missing)} acknowledged records, such as {min(missing)!r}")
        value = int(read_if_there(place, 5, "counter") or b"0")
        if not self.counted <= value <= self.tried:
            raise Failure(f"the counter is {value}: {self.counted} acknowledged, {self.tried} tried")

    def check_unlocked(self, place: LibraryPlace, owner: int = 99) -> None:
        """Get the counter's lock: all who had it and are gone have it no more. Raises QuorumfsError."""
        until = self.world.loop.now + self.world.config.lease_seconds * 4
        while True:
            try:
                open_now(place, 6, "counter", os.O_RDWR)
                lock = FileLock(place.slots[6].inode.ino, False, owner, 0, 2**63 - 1, True, owner)
                place.filesystem.locks.set(place.slots[6], lock)
                break
            except QuorumfsError:  # somebody has it for a moment, or an answer is lost
                if self.world.loop.now > until:
                    raise
                self.world.scheduler.sleep(1.0)
        place.filesystem.locks.closing(place.slots[6], owner)
        place.close(6)
