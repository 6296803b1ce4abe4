"""Clients and what they do: files of their own, held against a model, and deeds that are kept elsewhere.

An actor outlives its process: when that is killed, the next one goes on with what is known. One greenlet
of an actor acts at a time.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

from fusefs.patience import is_away
from tests.sim import model
from tests.sim.cluster import World
from tests.sim.handles import opened, read_if_there
from tests.sim.links import Links
from tests.sim.neighbours import Neighbours
from tests.sim.put_backs import look_at_remains
from tests.sim.recorded import Deeds
from tests.sim.shared import Shared
from tests.sim.temporary import Temporary
from tests.sim.told import clear_out
from tests.sim.visits import Visits
from tests.twins import LibraryPlace
from wire.errors import AlreadyExists, NotFound, QuorumfsError

PATHS = ["a", "b", "c", "d/a", "d/b"]
CALL_SECONDS_MAX = 60.0
"""No deed takes longer: each of its calls has a deadline of 8 s at most."""

SETTLE_SECONDS = 12.0
"""No call that a killed process has sent is carried out later than this."""
CACHE_SECONDS = 3.0
KEEN = 0.6
"""So often a client that is the only one does little but what takes being alone."""

IMPOSSIBLE = (NotFound, AlreadyExists, FileNotFoundError, FileExistsError)
"""No deed ends so while it is known what is there: such a call was done before, and again."""


class Actor:
    """One client: `life` is what its process does until `stop` is set."""

    def __init__(self, world: World, number: int, shared: Shared) -> None:
        self.world, self.number, self.shared = world, number, shared
        self.name = f"client-{number}"
        self.home = f"home-{number}"
        self.left: list[tuple[str, model.Model]] = []
        """Homes of processes that were killed, and what may be seen there: they are looked at in the end."""
        self._remains: list[str] = []
        """Homes of before an older state of the metadata was put back."""
        self.rng = random.Random(world.rng.random())
        self.model = model.Model()
        self.pending: list[model.Change] | None = None
        self._power_losses = self._put_backs = 0
        self.visits: Visits | None = None
        """Where it is the only client."""
        self._is_keen = self.rng.random() < KEEN
        self.neighbours = Neighbours(world, self.home, self.rng)
        self.links = Links(world, self.home, self.rng)
        self.temporary = Temporary(world, self.home, self.rng)
        self.stop = self.leaving = False
        """Whether its process is to end for ever; or to unmount in good order, after what it does now."""
        self.idle = False
        self.holding = False
        """Whether it has something open or locked, for a while."""
        self.calls = self.failures = 0
        self.sync_probability = self.world.sync_probability
        self._ready = False
        self._tag = self._lives = self._starts = self._moves = 0
        self.deeds: Deeds
        self._look_from = 0.0
        """When what a killed process asked for, and what is cached from before a power loss, is over."""

    @property
    def has_recovered(self) -> bool:
        """Whether it knows how its files are, and what faults have left is over for it."""
        return self._ready and self.model.certain and self._put_backs == self.world.put_backs.count

    # a process's life

    def start(self) -> None:
        """Begin a process; what the one before was doing has an unknown outcome."""
        self.note_power_losses()
        if self.pending is not None:
            self.model.unknown(self.pending)
            self.pending = None
        left, self.leaving = self.leaving and self.model.certain, False
        self.idle = self.holding = False
        if not left:
            self._look_from = self.world.loop.now + (SETTLE_SECONDS if self._starts else 0.0)
            if self._ready and self.rng.random() < 0.5:
                self._move()
            self.model.certain = False
        self._starts += 1
        self.process = self.world.client(self.name, self.life)

    def _move(self) -> None:
        """Have a new home, which nothing of before can touch, instead of waiting until that is over."""
        self.left.append((self.home, self.model))
        self._moves += 1
        self.home, self.model = f"home-{self.number}-{self._moves}", model.Model()
        self.neighbours.home = self.links.home = self.temporary.home = self.home
        self._ready, self._look_from = False, self.world.loop.now

    def _begin_after_put_back(self) -> None:
        """Leave all that is of before to the last look; go on once it may be relied on what servers say."""
        self._put_backs = self.world.put_backs.count
        self._move()
        self._remains += [home for home, _ in self.left]
        self.left.clear()
        while not self.world.put_backs.settled:
            self.world.scheduler.sleep(0.5)

    def life(self, filesystem: Any) -> None:
        place = LibraryPlace(filesystem, "")
        self._lives += 1
        self.deeds = Deeds(self.shared.recorded, f"{self.name}.{self._lives}", place, self.rng)
        while not (self.stop or self.leaving):
            if self._put_backs != self.world.put_backs.count:
                self._begin_after_put_back()
            if not self._ready:
                self._prepare(place)
                continue
            self.note_power_losses()
            if not self.model.certain:
                self._settle(place)
            else:
                self._choose_deed()(place)
            self.world.scheduler.sleep(self.rng.expovariate(1 / 0.1))
        if self.world.with_shared and self.stop:
            try:
                self.shared.check_unlocked(place, self.number)
            except QuorumfsError as error:
                self.world.problem(f"{self.name} gets no lock when all is well again: {error}")
        self.idle = self.stop

    def _settle(self, place: LibraryPlace) -> None:
        """Look at its files once nothing of before may be carried out; until then do what needs no look."""
        if self.world.loop.now >= self._look_from:
            self.look(place)
        elif self.world.with_shared and self.rng.random() < 0.5:
            self.rng.choice(self._shared_deeds())(place)
        else:
            self.rng.choice([self.neighbours.go_through, self.links.use, self.temporary.use])(place)

    def _choose_deed(self) -> Callable[[LibraryPlace], None]:
        """Draw one; while somebody is cut off, the others are keen on the lock that may have been lost."""
        if self.world.about_locks and self.rng.random() < 0.7:
            return self.rng.choice([self._count_up, self._count_guarded, self._hold_own])
        others_away = self.world.with_shared and self.name not in self.world.exiles and self.world.exiles
        if others_away and self.rng.random() < 0.4:
            return self.rng.choice([self._count_up, self._count_guarded])
        if self.visits is not None and self._is_keen:
            return self.rng.choice([self._clear_out, self._clear_out, self._be_visited])
        return self.rng.choice(self._deeds())

    def _deeds(self) -> list[Callable[[LibraryPlace], None]]:
        own = [self._replace, self._replace, self._patch, self._append, self._cut, self._read, self._rename]
        shared = self._shared_deeds() if self.world.with_shared else []
        visits = [self._be_visited, self._clear_out] * 3 if self.visits is not None else []
        return [
            *visits,
            *own,
            self._unlink,
            self._read,
            self._rename_and_sync,
            self._use_without_name,
            self.neighbours.go_through,
            self.links.use,
            self.temporary.use,
            *shared,
        ]

    def _shared_deeds(self) -> list[Callable[[LibraryPlace], None]]:
        return [self._add_record, self._count_up, self._count_guarded, *[self._use_shared] * 3]

    def _prepare(self, place: LibraryPlace) -> None:
        try:
            for path in (self.home, f"{self.home}/d"):
                with contextlib.suppress(AlreadyExists):
                    place.mkdir(path)
            place.open(9, f"{self.home}/mark", os.O_CREAT | os.O_RDWR)
            place.pwrite(9, 0, b"here")
            place.fsync(9)
            place.close(9)
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.name} prepare: {error}")
            self.world.scheduler.sleep(1.0)
            return
        self._ready = True

    def note_power_losses(self) -> None:
        if self._power_losses != self.world.power_losses:
            self._power_losses = self.world.power_losses
            self._look_from = max(self._look_from, self.world.loop.now + CACHE_SECONDS)
            for known in (self.model, *(left for _, left in self.left)):
                known.power_lost()

    def _do(
        self,
        what: str,
        act: Callable[[], object],
        outcomes: list[model.Change],
        *,
        durable: bool = False,
    ) -> bool:
        """Carry out a call whose whole effect is the last of `outcomes`; return whether it succeeded."""
        world, losses, begun = self.world, self._power_losses, self.world.loop.now
        stops = world.stops.counts[self.name]
        expected = self.model.nothing_late
        self.pending = outcomes
        self.calls += 1
        world.note("call", f"{self.name} {what}")
        try:
            act()
        except (QuorumfsError, OSError) as error:
            self.failures += 1
            world.note("failed", f"{self.name} {what}: {type(error).__name__}: {error}")
            self.note_power_losses()
            if expected and losses == world.power_losses and isinstance(error, IMPOSSIBLE):
                world.problem(f"{self.name} {what}: {type(error).__name__}: {error}")
            if world.calls_wait and isinstance(error, QuorumfsError) and is_away(error):
                world.problem(f"{self.name} {what} did not wait: {type(error).__name__}: {error}")
            self.model.unknown(outcomes)
        else:
            world.note("done", f"{self.name} {what}")
            self.note_power_losses()
            if losses == world.power_losses:
                self.model.done(outcomes[-1], durable=durable, parts=outcomes[:-1])
        if losses != world.power_losses:
            self.model.anything()
        self.pending = None
        took = world.loop.now - begun
        is_bounded = stops == world.stops.counts[self.name] and not world.calls_wait
        if took > CALL_SECONDS_MAX and is_bounded:
            world.problem(f"{self.name} {what} took {took:.1f} s")
        return self.model.certain

    # files of its own

    def _content(self, most: int = 20_000) -> bytes:
        self._tag += 1
        size = self.rng.choice([0, 1, 100, 4096, 70_000, self.rng.randrange(most)])
        if self.rng.random() < 0.05:
            size = (1 << 20) + self.rng.randrange(200_000)
        stamp = b"<%d.%d>" % (self.number, self._tag)
        return (stamp * (size // len(stamp) + 1))[:size]

    def _path(self) -> str:
        return self.rng.choice(PATHS)

    def _existing(self) -> str | None:
        there = sorted(self.model.current)
        return self.rng.choice(there) if there else None

    def _use(self, place: LibraryPlace, path: str, flags: int, act: Callable[[int], None]) -> None:
        with opened(place, 1, f"{self.home}/{path}", flags):
            act(1)

    def _replace(self, place: LibraryPlace) -> None:
        path, content, sync = self._path(), self._content(), self.rng.random() < self.sync_probability

        def act(slot: int) -> None:
            half = len(content) // 2
            self._pause(0.5)
            place.pwrite(slot, 0, content[:half])
            self._pause(3.0 if len(content) > 1 << 20 else 1.0)
            place.pwrite(slot, half, content[half:])
            if sync:
                place.fsync(slot)

        outcomes = [model.with_content(path, content)]
        if path not in self.model.current:
            outcomes.insert(0, model.with_content(path, b""))  # made, but nothing of it written
        self._do(
            f"replace {path} by {len(content)} bytes{' fsync' if sync else ''}",
            lambda: self._use(place, path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, act),
            outcomes,
            durable=sync,
        )

    def _patch(self, place: LibraryPlace) -> None:
        path = self._existing()
        if path is None:
            return
        size = len(self.model.current[path])
        offset, data = self.rng.randrange(size + 5000), self._content(5000)[:9000]
        sync = self.rng.random() < self.sync_probability

        def act(slot: int) -> None:
            place.pwrite(slot, offset, data)
            if sync:
                place.fsync(slot)

        if data:
            self._do(
                f"patch {path} at {offset} by {len(data)} bytes{' fsync' if sync else ''}",
                lambda: self._use(place, path, os.O_RDWR, act),
                [model.patched(path, offset, data)],
                durable=sync,
            )

    def _append(self, place: LibraryPlace) -> None:
        path = self._existing()
        if path is not None:
            data = self._content(3000)[:4096] or b"+"
            sync = self.rng.random() < self.sync_probability

            def act(slot: int) -> None:
                place.pwrite(slot, 0, data)
                if sync:
                    place.fsync(slot)

            self._do(
                f"append {len(data)} bytes to {path}{' fsync' if sync else ''}",
                lambda: self._use(place, path, os.O_RDWR | os.O_APPEND, act),
                [lambda s: model.patched(path, len(s[path]), data)(s) if path in s else s],
                durable=sync,
            )

    def _cut(self, place: LibraryPlace) -> None:
        path = self._existing()
        if path is not None:
            size = self.rng.randrange(len(self.model.current[path]) + 3000)
            self._do(
                f"truncate {path} to {size}",
                lambda: place.truncate(f"{self.home}/{path}", size),
                [model.cut(path, size)],
            )

    def _rename(self, place: LibraryPlace) -> None:
        path, new_path = self._existing(), self._path()
        if path is not None and path != new_path:
            self._do(
                f"rename {path} to {new_path}",
                lambda: place.rename(f"{self.home}/{path}", f"{self.home}/{new_path}", 0),
                [model.renamed(path, new_path)],
            )

    def _rename_and_sync(self, place: LibraryPlace) -> None:
        """The fsync of a file whose bytes are durable already makes its new name durable too."""
        path, new_path = self._existing(), self._path()
        if path is None or path == new_path:
            return

        def act(slot: int) -> None:
            place.fsync(slot)
            place.rename(f"{self.home}/{path}", f"{self.home}/{new_path}", 0)
            place.fsync(slot)

        self._do(
            f"rename {path} to {new_path} fsync",
            lambda: self._use(place, path, os.O_RDONLY, act),
            [model.renamed(path, new_path)],
            durable=True,
        )
        self.world.scheduler.sleep(self.rng.random() * self.rng.choice([0.1, 3.0]))

    def _use_without_name(self, place: LibraryPlace) -> None:
        """A file that is open stays whole without a name, and goes with its last user."""
        path = self._existing()
        if path is None:
            return
        expected, certain = self.model.current[path], self.model.nothing_late
        losses = self.world.power_losses
        try:
            place.open(8, f"{self.home}/{path}", os.O_RDONLY)
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.name} open {path}: {type(error).__name__}: {error}")
            return
        try:
            if not self._do(
                f"unlink {path}", lambda: place.unlink(f"{self.home}/{path}"), [model.without(path)]
            ):
                return
            self.holding = True
            self.world.scheduler.sleep(self.rng.random() * self.rng.choice([0.5, 5.0, 20.0]))
            seen = place.pread(8, 0, 1 << 23)
            if seen != expected and certain and losses == self.world.power_losses:
                self.world.problem(f"{self.name} read {len(seen)} other bytes of {path}, which has no name")
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.name} read without name: {type(error).__name__}: {error}")
        finally:
            self.holding = False
            with contextlib.suppress(QuorumfsError, OSError):
                place.close(8)

    def _pause(self, seconds: float) -> None:
        """Do nothing for a while, at times, in the midst of something."""
        if self.rng.random() < 0.3:
            self.world.scheduler.sleep(self.rng.random() * seconds)

    def _unlink(self, place: LibraryPlace) -> None:
        path = self._existing()
        if path is not None and self.rng.random() < 0.5:
            self._do(f"unlink {path}", lambda: place.unlink(f"{self.home}/{path}"), [model.without(path)])

    def _read(self, place: LibraryPlace) -> None:
        path = self._path()
        expected = self.model.current.get(path)
        losses = self.world.power_losses
        try:
            seen = read_if_there(place, 2, f"{self.home}/{path}")
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.name} read {path}: {type(error).__name__}: {error}")
            return
        if losses == self.world.power_losses and not self.model.allows(path, seen):
            difference = model.describe_difference(
                {} if seen is None else {path: seen}, {} if expected is None else {path: expected}
            )
            self.world.problem(f"{self.name} read {difference}")

    def look(self, place: LibraryPlace) -> bool:
        """Read all files of its own and hold them against the model; return whether it could."""
        return self._look_at(place, self.home, self.model)

    def look_back(self, place: LibraryPlace) -> bool:
        """Do so with the homes that it has left, too, and remove what is left there of links and the like."""
        homes = [self.home, *(home for home, _ in self.left)]
        self.links.remove_left(place, homes)
        self.temporary.remove_left(place, homes)
        while self._remains:
            if wrong := look_at_remains(place, self._remains[0], self.number):
                self.world.problem(wrong)
            del self._remains[0]
        return all(self._look_at(place, home, known) for home, known in self.left)

    def _look_at(self, place: LibraryPlace, home: str, known: model.Model) -> bool:
        losses, settled = self.world.power_losses, self.world.disks["meta"].takes_all
        seen: model.State = {}
        try:
            for path in PATHS:
                content = read_if_there(place, 2, f"{home}/{path}")
                if content is not None:
                    seen[path] = content
        except (QuorumfsError, OSError) as error:
            self.world.note("failed", f"{self.name} look: {type(error).__name__}: {error}")
            return False
        if losses != self.world.power_losses:
            return False
        self.world.note("look", f"{self.name} {sorted((p, len(c)) for p, c in seen.items())}")
        if wrong := known.saw(seen, settled=settled and self.world.disks["meta"].takes_all):
            self.world.problem(f"{self.name} sees in {home} {wrong}")
            known.accept(seen)
        return True

    # files that all change

    def _be_visited(self, place: LibraryPlace) -> None:
        assert self.visits is not None
        self.visits.receive(place.filesystem, self.name, self.rng)

    def _clear_out(self, place: LibraryPlace) -> None:
        self._tag += 1
        clear_out(self.world, place, f"{self.home}/cleared-{self._starts}-{self._tag}", self.rng)

    def _use_shared(self, _: LibraryPlace) -> None:
        self.deeds.do_one()

    def _add_record(self, place: LibraryPlace) -> None:
        self.shared.add_record(self, place)

    def _hold_own(self, place: LibraryPlace) -> None:
        self.shared.hold_own(self, place)

    def _count_up(self, place: LibraryPlace) -> None:
        self.shared.count_up(self, place)

    def _count_guarded(self, place: LibraryPlace) -> None:
        self.shared.guarded.count_up(self, place)
