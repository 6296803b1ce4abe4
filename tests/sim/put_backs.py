"""An older state of the metadata server's disk that is put back by hand, while all others go on.

A life has at most one. What clients had done since is gone, or refused where its blocks are; what they do
once the server has found it out, in new homes, must hold as ever. Until then nothing can be asked of mounts
that live through it (docs/decisions/0030-an-older-database-put-back-by-hand.md): they do nothing. One thread.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import mediator.milestones
from dataserver.marks import MILESTONES_NAME
from metaserver import fence, offline
from wire.blocking import BlockingClient
from wire.errors import NotFound, ReadRefused
from wire.methods import CommonMethods

if TYPE_CHECKING:
    from tests.sim.cluster import World
    from tests.sim.loop import Process
    from tests.twins import LibraryPlace

LIVES_WITH = 0.12
"""So many lives draw one. About half of them end before it is time for it: one in twenty has it."""
FIND_OUT_SECONDS = 15.0
"""If it is not found out by then, as too little was changed since or data servers are down, mounts are made
anew. No call that a killed process has sent is carried out later than this."""
PERIODS_SECONDS = [2.0, mediator.milestones.PERIOD_SECONDS]
"""A life is short for that of a real cluster. Without a put-back it has no other: each milestone syncs the
metadata's log, and so hides what was not made durable."""
STAMP = re.compile(rb"<(\d+)\.\d+>")


def milestone_of(directory: Path) -> int:
    """Return the milestone of a stopped metadata server's database, whose files stay as they are.

    Data servers may have known of an earlier one only when they were put away: it is told after it is taken.
    """
    with tempfile.TemporaryDirectory() as copies:
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copy(directory / f"meta.sqlite{suffix}", copies)
        with closing(sqlite3.connect(Path(copies) / "meta.sqlite")) as connection:
            row = connection.execute("SELECT next FROM counters WHERE name = 'milestone'").fetchone()
    return row[0] if row else 0


class PutBacks:
    """Takes the state of the metadata's disk, and puts it back later.

    Attributes:
        happen: whether this life may have one.
        count: how many there were.
        frail: the data servers whose disks may lose what they had.
        found_out: whether the metadata server has found it out, and begun anew.
        period_seconds: so often data servers are told how far the metadata is.
    """

    def __init__(self, seed: int, world: World) -> None:
        self._rng = random.Random(f"put-backs of {seed}")
        self._world = world
        self.happen = self._rng.random() < LIVES_WITH and not world.about_locks
        self.count = 0
        self.frail: list[str] = []
        self.period_seconds = self._rng.choice(PERIODS_SECONDS if self.happen else PERIODS_SECONDS[1:])
        self._take_at = self._rng.uniform(2.0, 25.0)
        self._put_at = self._take_at + self._rng.uniform(3.0, 35.0)
        self._settled_at: float | None = 0.0
        self._must_find_out = self.found_out = False
        self._found_out_by: Process | None = None

    @property
    def settled(self) -> bool:
        """Whether clients may rely on what they are told."""
        return self._settled_at is not None and self._world.loop.now >= self._settled_at

    def step(self, clients: list[str]) -> None:
        """Take the state, put it back, or end the wait for its being found out, if it is time for that."""
        if not self.happen:
            return
        now, disk = self._world.loop.now, self._world.disks["meta"]
        if self._take_at <= now:
            self._take_at = float("inf")
            self._world.note("fault", "the state of meta's disk is taken")
            disk.snapshot()
        elif self._put_at <= now and not self.count:
            self._put_back(clients)
        elif self._settled_at is None and now > self._put_at + FIND_OUT_SECONDS:
            self.give_up(clients)

    def _put_back(self, clients: list[str]) -> None:
        world = self._world
        world.kill("meta")
        world.note("fault", "meta has an older state of its disk")
        world.disks["meta"].roll_back()
        milestone = milestone_of(world.config.metaserver_directory)
        sound = len([kept for kept in self._kept() if kept >= milestone + 2])
        self._must_find_out = sound > world.config.quorum.servers - world.config.quorum.read
        self.count += 1
        world.power_losses += 1  # so it is to clients, but for how far it goes back
        self._put_at, self._settled_at = world.loop.now, None
        if self._rng.random() < 0.5:
            self.give_up(clients)
        world.start("meta")

    def _kept(self) -> list[int]:
        """Return the milestones that data servers have, but for those whose disks may lose them."""
        found = []
        for place in self._world.config.data_servers:
            if f"data-{place.number}" not in self.frail:
                with suppress(FileNotFoundError):
                    told = json.loads((place.directory / MILESTONES_NAME).read_bytes())
                    found.append(max(told["milestones"].values(), default=0))
        return found

    def note_beginning_anew(self, process: Process) -> bool:
        """The metadata server has found out something; return whether it is this."""
        if not self.count or self.found_out:
            return False
        self._found_out_by = process
        return True

    def note_ready(self, process: Process) -> None:
        """A metadata server serves, maybe again; if it ended before, the next finds it out or knows it."""
        if process is self._found_out_by and not self.found_out:
            self.found_out, self._settled_at = True, self._world.loop.now

    def give_up(self, clients: list[str]) -> None:
        """Have no mount live on that knows of a later state; new ones wait until nothing of these is late."""
        if self._settled_at is None:
            for name in clients:
                self._world.kill(name)
            self._settled_at = self._world.loop.now + FIND_OUT_SECONDS

    def problem(self) -> str | None:
        """Say so if the server's status tells nothing of it, though enough others know of a later state."""
        if not self._must_find_out:
            return None
        with closing(BlockingClient([self._world.config.metaserver_listen])) as client:
            if client.call(10.0, CommonMethods.status)["found_older_ns"]:
                return None
        return "an older state of the metadata was put back, and nobody has found it out"

    def let_go(self) -> None:
        """Release what is kept behind the fence, as `quorumfs restore --release` on a stopped server."""
        world = self._world
        world.end("meta")
        while world.alive("meta"):
            world.scheduler.sleep(0.1)
        with offline.opened(world.config.metaserver_directory, world.config.cluster) as connection:
            fence.release(connection)
        world.start("meta")


def look_at_remains(place: LibraryPlace, home: str, number: int) -> str | None:
    """Read all files that are left in a home from before, and remove them; say what is wrong, or None.

    They are old ones, may have met a later change, or are refused; they are never another client's.
    """
    try:
        names = place.list(home)
    except NotFound:
        return None
    for name in names:
        path = f"{home}/{name}"
        if place.lstat(path)["mode"] & 0o170000 == 0o040000:
            if wrong := look_at_remains(place, path, number):
                return wrong
            continue
        place.open(2, path, 0)
        try:
            content = place.pread(2, 0, 1 << 23)
            if any(int(writer) != number for writer in STAMP.findall(content)):
                return f"{path} has the bytes of another client"
        except ReadRefused:
            pass
        finally:
            place.close(2)
        place.unlink(path)
    place.rmdir(home)
    return None
