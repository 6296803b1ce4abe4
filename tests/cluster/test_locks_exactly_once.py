"""Locking and unlocking are carried out exactly once, whatever is killed between the call and its answer.

All cases run at once, each in a file and a session of its own, through what a mount uses. A proxy catches
the call of each; from then on a rival session tries for a lock of the same file, and for locks that it must
not get at any time. A part is killed and started again. In the end the answers, and who holds which byte
by the metadata server, must be those of the model for one order of the holder's call and the rival's.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from fusefs.connect import connect
from fusefs.filesystem import FileSystem
from tests.cluster.detour import VICTIMS, Detour, Moment, Trap
from tests.conftest import ClusterFactory
from tests.support import wait_until
from tools.cluster import LocalCluster
from wire.blocking import BlockingClient
from wire.errors import LocksLost, QuorumfsError, WouldBlock
from wire.locks import LAST
from wire.messages import ROOT_INODE, FileLock
from wire.methods import CommonMethods

SECONDS = 60.0
BYTES = range(10)
"""The model knows of these bytes; whole-file locks cover them all."""

Wish = tuple[str, int, int]
"""A mode ("exclusive", "shared", or "none" to unlock), the first and the last byte."""
Table = dict[tuple[str, int], str]
"""The mode in which somebody holds a byte."""


class Case(NamedTuple):
    """One call, and what surrounds it."""

    flock: bool
    before: dict[str, Wish]
    """What the holder, the rival and a bystander hold before the call."""
    call: Wish
    rival: Wish
    """What the rival asks for until it has it, from the time when the call was caught."""
    never: Sequence[Wish] = ()
    """What nobody else may get at any time, for the holder or the bystander has it all the time."""


def exclusive(first: int = 0, last: int = LAST) -> Wish:
    return "exclusive", first, last


def shared(first: int = 0, last: int = LAST) -> Wish:
    return "shared", first, last


def none(first: int = 0, last: int = LAST) -> Wish:
    return "none", first, last


CASES = {
    "lock": Case(False, {}, exclusive(2, 5), exclusive(5, 9)),
    "lock more": Case(False, {"holder": exclusive(0, 1)}, exclusive(2, 5), exclusive(4, 6), [shared(1, 1)]),
    "lock shared": Case(False, {"bystander": shared(3, 9)}, shared(2, 5), exclusive(2, 2), [exclusive(5, 6)]),
    "more than shared": Case(
        False, {"holder": shared(0, 9)}, exclusive(2, 5), shared(3, 3), [exclusive(0, 3)]
    ),
    "less than exclusive": Case(
        False, {"holder": exclusive(0, 9)}, shared(2, 5), shared(3, 4), [exclusive(3, 3), shared(6, 6)]
    ),
    "refused": Case(
        False,
        {"holder": shared(0, 1), "bystander": exclusive(4, 4)},
        exclusive(),
        shared(0, 1),
        [exclusive(1, 1), shared(4, 4)],
    ),
    "unlock": Case(False, {"holder": exclusive(0, 9)}, none(), exclusive(0, 9)),
    "unlock a part": Case(
        False, {"holder": exclusive(0, 9)}, none(3, 5), exclusive(4, 4), [shared(2, 2), shared(6, 9)]
    ),
    "flock": Case(True, {}, exclusive(), exclusive()),
    "flock shared": Case(True, {"bystander": shared()}, shared(), shared(), [exclusive()]),
    "flock, more than shared": Case(True, {"holder": shared()}, exclusive(), shared()),
    "flock, less than exclusive": Case(True, {"holder": exclusive()}, shared(), shared()),
    "flock refused": Case(True, {"bystander": exclusive()}, shared(), shared(), [shared()]),
    "flock refused and lost": Case(True, {"holder": shared(), "rival": shared()}, exclusive(), exclusive()),
    "flock, unlock": Case(True, {"holder": exclusive()}, none(), exclusive()),
}

PARTLY_REFUSED = Case(
    False, {"holder": exclusive(0, 4), "bystander": exclusive(7, 7)}, shared(0, 9), exclusive(0, 4)
)


# the model


def asks(table: Table, flock: bool, who: str, wish: Wish) -> tuple[bool, Table]:
    """Return whether somebody gets what he asks for, and who holds what then."""
    mode, first, last = wish
    wanted = [byte for byte in BYTES if first <= byte <= last]
    rest = {key: held for key, held in table.items() if key[0] != who or key[1] not in wanted}
    for (other, byte), held in table.items():
        if mode != "none" and other != who and byte in wanted and "exclusive" in (mode, held):
            return False, rest if flock else table
    return True, rest if mode == "none" else {**rest, **{(who, byte): mode for byte in wanted}}


def prepared(case: Case) -> Table:
    table: Table = {}
    for who, wish in case.before.items():
        got, table = asks(table, case.flock, who, wish)
        assert got
    return table


Outcome = tuple[bool, bool, Table]
"""Whether the holder's call was granted, whether the rival has what it wants, and who holds what."""


def outcomes(case: Case, rival_first: bool, rival_later: bool) -> list[Outcome]:
    """Return how a case may end: the rival may have tried before the call, and after it or too early."""
    granted, alone = asks(prepared(case), case.flock, "holder", case.call)
    got, both = asks(alone, case.flock, "rival", case.rival)
    possible: list[Outcome] = [(granted, got, both)]
    if rival_later:
        possible.append((granted, False, alone))
    if rival_first:
        got, before = asks(prepared(case), case.flock, "rival", case.rival)
        granted, both = asks(before, case.flock, "holder", case.call)
        possible.append((granted, got, both))
    return possible


# the real thing


class Party:
    """A client of its own with files open in it."""

    def __init__(self, filesystem: FileSystem, session: int, owner: int) -> None:
        self.filesystem, self.session, self.owner = filesystem, session, owner
        self.handles: dict[int, Any] = {}

    def ask(self, ino: int, flock: bool, wish: Wish) -> bool:
        """Lock or unlock as a program does; tell whether it was granted."""
        if ino not in self.handles:
            self.handles[ino] = self.filesystem.files.open(ino, os.O_RDWR)[0]
        mode, first, last = wish
        lock = FileLock(ino, flock, self.owner, first, last, mode == "exclusive", 0)
        try:
            if mode == "none":
                self.filesystem.locks.unset(self.handles[ino], lock)
            else:
                self.filesystem.locks.set(self.handles[ino], lock)
        except WouldBlock:
            return False
        return True


class Running:
    """One case under way: the holder's thread makes its call, the rival's tries again and again."""

    def __init__(self, name: str, case: Case, ino: int, parties: dict[str, Party]) -> None:
        self.name, self.case, self.ino, self.parties = name, case, ino, parties
        self.granted: bool | None = None
        self.got = False
        self.tried = threading.Event()
        self.ended = threading.Event()
        self.errors: list[str] = []
        for who, wish in self.case.before.items():
            assert self.ask(who, wish)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._call, self._try)
        ]

    def ask(self, who: str, wish: Wish) -> bool:
        return self.parties[who].ask(self.ino, self.case.flock, wish)

    def call(self) -> None:
        self._threads[0].start()

    def compete(self) -> None:
        self._threads[1].start()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except (QuorumfsError, AssertionError) as error:
            self.errors.append(f"{work.__name__}: {error!r}")
        finally:
            self.ended.set()
            self.tried.set()

    def _call(self) -> None:
        self.granted = self.ask("holder", self.case.call)

    def _try(self) -> None:
        while True:
            self.got = self.got or self.ask("rival", self.case.rival)
            for wish in self.case.never:
                assert not self.ask("intruder", wish), f"{wish} was granted"
            self.tried.set()
            if self.ended.wait(0.02):
                return

    def judge(self, possible: list[Outcome], table: Any) -> None:
        """Compare with the model; then give up everything, and see that it can be had."""
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), f"{self.name}: no answer"
        assert not self.errors, f"{self.name}: {self.errors}"
        found = self.granted, self.got, table(self)
        assert found in possible, self.name
        self._compare_beliefs(found[2])
        for who in ("holder", "bystander"):
            self.ask(who, none())
        assert self.ask("rival", exclusive()), f"{self.name}: it cannot be had after the unlock"
        self.ask("rival", none())
        assert table(self) == {}, self.name

    def _compare_beliefs(self, table: Table) -> None:
        for who in ("holder", "rival"):
            held = self.parties[who].filesystem.locks.reclaim(0)
            believed = {
                byte: "exclusive" if lock.exclusive else "shared"
                for lock in held
                for byte in BYTES
                if lock.ino == self.ino and lock.start <= byte <= lock.last
            }
            assert believed == {byte: mode for (other, byte), mode in table.items() if other == who}, (
                self.name
            )


class Rig(Detour):
    """A client for each holder, and for the three others."""

    def __init__(self, made: LocalCluster, stack: ExitStack) -> None:
        super().__init__(made, stack)
        self._status = BlockingClient([self.cluster.address("metaserver")])
        stack.callback(self._status.close)
        self._config = dataclasses.replace(made.config, mediator_listen=self.front.address)
        self.others = {name: self._party(name, stack) for name in ("rival", "bystander", "intruder")}
        self.holders = {name: self._party(name, stack) for name in CASES}
        hasty = dataclasses.replace(made.config.deadlines, metadata_seconds=1.0)
        self._config = dataclasses.replace(self._config, deadlines=hasty)
        self.hasty = self._party("hasty", stack)
        make = self.others["rival"].filesystem.make
        self.inodes = {name: make(ROOT_INODE, name.encode(), 0o100644, 0, 0).ino for name in CASES}

    def _party(self, name: str, stack: ExitStack) -> Party:
        filesystem = stack.enter_context(connect(self._config, name))
        sessions = {row["name"]: row["session"] for row in self._ask_status()["sessions"]}
        return Party(filesystem, sessions[name], len(sessions))

    def _ask_status(self) -> dict[str, Any]:
        return self._status.call(SECONDS, CommonMethods.status)

    def table(self, running: Running) -> Table:
        """Return who holds which bytes by the metadata server."""
        names = {party.session: name for name, party in running.parties.items()}
        table: Table = {}
        for row in self._ask_status()["locks"]:
            if row["ino"] == running.ino:
                for byte in BYTES:
                    if row["start"] <= byte <= row["last"]:
                        table[names[row["session"]], byte] = row["mode"]
        return table

    def play(self, seam: str, moment: Moment, victims: tuple[str, ...]) -> None:
        """Catch all calls at a point, let the rivals loose, kill, start again, and judge."""
        proxy = {"front": self.front, "back": self.back}[seam]
        cases = [
            Running(name, CASES[name], self.inodes[name], {"holder": holder, **self.others})
            for name, holder in self.holders.items()
        ]
        proxy.trap = trap = Trap(moment, [holder.session for holder in self.holders.values()])
        for running in cases:
            running.call()
        wait_until(trap.full.is_set, SECONDS, f"all calls are caught (now {len(trap.caught)})")
        for running in cases:
            running.compete()
        if moment == "after":
            wait_until(lambda: all(r.tried.is_set() for r in cases), SECONDS, "all rivals have tried")
        self.kill(victims, proxy)
        decided = moment == "after" and "metaserver" not in victims
        for running in cases:
            running.judge(outcomes(running.case, not decided, not decided), self.table)


@pytest.fixture
def rig(make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr("fusefs.session.HEARTBEAT_SECONDS", 0.2)
    with ExitStack() as stack:
        yield Rig(make_cluster(servers=1, read_quorum=1, write_quorum=1), stack)


@pytest.mark.parametrize("moment", ["before", pytest.param("sent", marks=pytest.mark.long), "after"])
@pytest.mark.parametrize("seam", ["front", "back"])
def test_killed_between_a_lock_and_its_answer(rig: Rig, seam: str, moment: Moment) -> None:
    for victims in VICTIMS.values():
        rig.play(seam, moment, victims)


@pytest.mark.parametrize("victim", ["mediator", "metaserver"])
def test_a_change_to_shared_that_is_refused(rig: Rig, victim: str) -> None:
    """The exclusive lock stays. A new metadata server cannot know it: then the file must be opened anew."""
    holder = rig.holders["lock"]
    running = Running("refused", PARTLY_REFUSED, rig.inodes["lock"], {"holder": holder, **rig.others})
    rig.front.trap = trap = Trap("after", [holder.session])
    running.call()
    wait_until(trap.full.is_set, SECONDS, "the call is caught")
    rig.kill([victim], rig.front)
    wait_until(running.ended.is_set, SECONDS, "the answer")
    handle = holder.handles[running.ino]
    if victim == "mediator":
        assert not running.errors
        assert running.granted is False
        assert not running.ask("intruder", shared(0, 0))
        assert holder.filesystem.files.read(handle, 0, 1) == b""
    else:
        assert "LocksLost" in running.errors[0]
        with pytest.raises(LocksLost):
            holder.filesystem.files.read(handle, 0, 1)
    holder.filesystem.files.release(handle)


def test_a_call_without_an_answer_takes_no_lock_from_others(rig: Rig) -> None:
    """What may have been granted is not said again: its real holder would lose its session."""
    name = "lock"
    running = Running(
        name,
        Case(False, {"rival": exclusive()}, exclusive(), none()),
        rig.inodes[name],
        {"holder": rig.hasty, **rig.others},
    )
    running.ask("holder", none())  # opens the file
    rig.cluster.kill("metaserver")
    running.call()
    wait_until(running.ended.is_set, SECONDS, "the call fails")
    assert "Unavailable" in running.errors[0]
    rig.cluster.start()
    assert not running.ask("intruder", shared())
    assert rig.table(running) == {("rival", byte): "exclusive" for byte in BYTES}
    assert running.ask("rival", none())
    assert running.ask("intruder", exclusive())
