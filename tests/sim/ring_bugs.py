"""Bugs of changes without a call, put in on purpose (see tests.sim.mutants). One thread."""

from __future__ import annotations

import types
from typing import Any

import fusefs.ring
import mediator.lag
import metaserver.rings
import metaserver.told
from tests.sim.changes import change


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


def rings_are_forgotten_at_a_start() -> None:
    def nothing(self: Any) -> None:
        pass

    change(metaserver.rings.Rings, "_adopt", lambda _: nothing)


def new_file_is_told_though_a_server_lacks_its_block() -> None:
    def have_all(self: Any, records: Any) -> bool:
        return True

    change(mediator.lag.LagKeeper, "have_all", lambda _: have_all)


def new_file_that_was_told_is_made_though_the_call_has_made_it() -> None:
    def make(usual: Any) -> Any:
        def carry_out(self: Any, session: int, told: Any) -> Any:
            once = self._store.once_within
            self._store.once_within = lambda ticket, work, *args: work(ticket.session, *args)
            try:
                return usual(self, session, told)
            finally:
                self._store.once_within = once

        return carry_out

    change(metaserver.told.ToldChanges, "carry_out", make)


def new_file_that_was_told_is_not_open() -> None:
    """What its program removes while it writes it is gone for the program too."""

    def nothing(self: Any, session: int, changes: Any) -> None:
        pass

    change(metaserver.told.ToldChanges, "carried_out", lambda _: nothing)
