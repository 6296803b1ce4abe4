"""Bugs of changes and puts without a call, put in on purpose (see tests.sim.mutants). One thread."""

from __future__ import annotations

import types
from typing import Any

import dataserver.block_rings
import dataserver.service
import fusefs.ring
import mediator.block_rings
import metaserver.rings
import metaserver.told
from tests.sim.changes import change
from wire.ring import NewFile


def removals_are_taken_in_when_there_is_time() -> None:
    """A call may be answered before what was removed by then is."""

    def make(usual: Any) -> Any:
        def begun(self: Any, store: Any, *args: Any) -> None:
            usual(self, store, *args)
            store.bring_in = lambda: None

        return begun

    change(metaserver.rings.Rings, "__init__", make)


def removal_is_answered_though_the_grant_is_over() -> None:
    def make(usual: Any) -> Any:
        def tell(self: Any, *args: Any) -> bool:
            grant, era = self._grant, self._grant.era()
            self._grant = types.SimpleNamespace(era=lambda: era)
            try:
                return bool(usual(self, *args))
            finally:
                self._grant = grant

        return tell

    change(fusefs.ring.ChangeRing, "tell", make)


def removals_are_told_again_after_a_restart() -> None:
    """How many were carried out is not known to the database."""

    def taken(self: Any, session: int) -> int:
        return 0

    change(metaserver.rings.Rings, "_taken", lambda _: taken)


def new_files_are_open_when_all_changes_are_taken_in() -> None:
    """Their removals may be among these."""

    def make(usual: Any) -> Any:
        def carried_out(self: Any, session: int, changes: list[Any]) -> None:
            usual(self, session, changes)
            for file in changes:
                if isinstance(file, NewFile) and self._sessions.has_reclaimed(session):
                    self._sessions.hold(session, file.ino)

        return carried_out

    change(metaserver.told.ToldChanges, "carried_out", make)
    change(metaserver.told.ToldChanges, "_hold", lambda _: lambda self, session, ino: None)


def rings_are_forgotten_at_a_start() -> None:
    def nothing(self: Any) -> None:
        pass

    change(metaserver.rings.Rings, "_adopt", lambda _: nothing)


def given_blocks_are_taken_in_when_there_is_time() -> None:
    def nothing(self: Any) -> None:
        pass

    change(dataserver.service.DataService, "bring_in", lambda _: nothing)


def given_blocks_are_forgotten_at_a_start() -> None:
    def forgotten(self: Any) -> None:
        for path in dataserver.block_rings.own_files(dataserver.block_rings.SHARED_MEMORY, self._prefix):
            path.unlink()

    change(dataserver.block_rings.BlockRings, "_adopt", lambda _: forgotten)


def blocks_are_given_to_servers_that_are_gone() -> None:
    """What is written into a ring counts, whatever its head says by then, and whoever is there."""

    def has_it(self: Any, now: float) -> bool:
        return True

    change(mediator.block_rings._Ring, "has_it", lambda _: has_it)
