"""Visitors: a client that is alone, and may rely on what it knows, is joined by another that changes a name.

Whoever opens the file after the visitor was told that its rename is done sees the visitor's bytes (P8). The
visitor finds what the client has created before it came (tests.sim.births). One greenlet at a time.
"""

from __future__ import annotations

import os
import random
from contextvars import Context
from typing import Any

from tests.sim.births import Birth
from tests.sim.cluster import World
from tests.sim.told import Told
from tests.twins import LibraryPlace
from wire.errors import NotFound, QuorumfsError, StaleFile

NAME, NEW_NAME = "visited", "visited.new"
MOST_LOOKS = 7
"""A second apart: a client that is alone is told so after three."""
MOST_SECONDS_OFF = 7.0
VISIT_SECONDS = 60.0
SETTLE_SECONDS = 12.0
"""No call of a visitor that failed is carried out later than this."""
WALKER = 77


class Visits:
    """All visits of one world, to its only client."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0
        self._visitor: Any = None
        self._unknown_until = 0.0

    @property
    def are_over(self) -> bool:
        """Whether no visitor is there."""
        return self._visitor is None or not self._visitor.alive

    def receive(self, filesystem: Any, name: str, rng: random.Random) -> None:
        """Look at a name for a while, have a visitor rename over it, open it.

        Args:
            filesystem: the client's.
            name: what the client is called.
            rng: draws how long it looks.
        """
        world = self._world
        if not self.are_over:
            return
        place, losses = LibraryPlace(filesystem, ""), world.power_losses
        files = Told(world, f"told-{self._number}")
        files.make(place)
        looks, waits = rng.randrange(MOST_LOOKS), rng.random() < 0.5
        while looks and not (waits and filesystem._grant.era()):
            looks -= 1
            self._read(filesystem)
            world.scheduler.sleep(1.0)
        files.remove(place, rng, 3)
        files.make(place, 3)
        birth = Birth(world, f"born-{self._number}")
        birth.create(place)
        if rng.random() < 0.3:
            self._cut_off(name, rng.uniform(1.0, MOST_SECONDS_OFF))
        content, told = self._begin(birth, files)
        files.remove(place, rng, 3)
        files.make(place, 3)
        birth.close(place, rng)
        until = world.loop.now + VISIT_SECONDS
        while not told and self._visitor.alive and world.loop.now < until:
            world.scheduler.sleep(0.05)
        if not told or world.loop.now < self._unknown_until:
            return
        seen = self._read(filesystem)
        if seen is not None and seen != content and losses == world.power_losses:
            world.problem(f"{name} reads {seen!r} where a visitor has put {content!r}")

    def _cut_off(self, name: str, seconds: float) -> None:
        """Keep a client from telling what it has created, for a while."""
        world, network = self._world, self._world.network
        world.note("fault", f"{name} is cut off for {seconds:.1f} s with a new file")
        ways = {way for other in world.mediators for way in ((name, other), (other, name))}
        for way in ways:
            network.block(*way)

        def end() -> None:
            if name not in world.exiles:
                network.heal(frozenset(network.blocked) - ways)

        world.loop.call_at_moment(world.loop.now + seconds, end, context=Context())

    def _begin(self, birth: Birth, files: Told) -> tuple[bytes, list[bool]]:
        self._number += 1
        content, told = b"visitor %d" % self._number, list[bool]()

        def visit(filesystem: Any) -> None:
            place = LibraryPlace(filesystem, "")
            try:
                files.judge(place)
                first = birth.look(place)
                place.open(1, NEW_NAME, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
                place.pwrite(1, 0, content)
                if self._world.may_lose_all_power:
                    place.fsync(1)
                place.close(1)
                place.rename(NEW_NAME, NAME, 0)
                told.append(True)
                self._world.note("done", content.decode())
                birth.judge(place, first)
                files.judge(place)
            except (QuorumfsError, OSError) as error:
                self._unknown_until = self._world.loop.now + SETTLE_SECONDS
                self._world.note("failed", f"{content.decode()}: {type(error).__name__}: {error}")

        self._visitor = self._world.client(f"visitor-{self._number}", visit)
        return content, told

    def _read(self, filesystem: Any) -> bytes | None:
        """Return what the file holds, as a program would read it; None if nobody can tell."""
        try:
            for _ in range(2):  # as the kernel walks again, once
                found = filesystem.names.lookup(1, NAME.encode(), WALKER)
                try:
                    handle, _ = filesystem.open(found.ino, os.O_RDONLY, WALKER)
                except StaleFile:
                    continue
                try:
                    return bytes(filesystem.files.read(handle, 0, 100))
                finally:
                    filesystem.files.release(handle)
            return b"(a file that is gone)"
        except NotFound:
            return b"(nothing)"
        except QuorumfsError as error:
            self._world.note("failed", f"a look at {NAME}: {type(error).__name__}: {error}")
            return None
