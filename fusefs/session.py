"""This mount's session at the metadata server: begun, kept alive, reclaimed after a restart, begun anew.

One thread of its own sends a heartbeat a second and learns from it whether writes are possible. All public
methods are safe in any thread.
"""

from __future__ import annotations

import itertools
import logging
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from fusefs.clock import seconds_passed
from fusefs.grant import Grant, is_certain
from fusefs.patience import Patience
from fusefs.ring import ChangeRing
from wire.blocking import BlockingClient
from wire.config import Deadlines
from wire.errors import (
    InternalError,
    NoSpace,
    QuorumfsError,
    SessionUnknown,
    StaleEpoch,
    TransportError,
    Unavailable,
    WriteRefused,
)
from wire.messages import FileLock, Heartbeat, Ticket
from wire.methods import MediatorMethods, NamespaceMethods

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
HEARTBEAT_DEADLINE_SECONDS = 5.0
BIRTH_SECONDS = 1.3
"""What is left of a grant is enough for keeping a file to this mount: longer than until chores make it."""
SLOTS = 32
"""So many mutating calls of a session may be in flight at once."""

INODES_A_CALL = 16_384
"""A call names no more inodes: a message is bounded."""


def runs(many: Sequence[R], most: int) -> Iterator[list[R]]:
    """Part what a call is about into lists of at most `most`, for as many calls."""
    return (list(many[start : start + most]) for start in range(0, len(many), most))


class _Slot(NamedTuple):
    """A slot, and its last call's session: the one whose number was in its ticket."""

    session: int
    number: int
    sequences: Iterator[int]

    def ticket(self) -> Ticket:
        return Ticket(self.session, self.number, next(self.sequences))


class Session:
    """A session that is always there: when one dies, the next call finds a new one.

    Args:
        client: calls the mediator.
        deadlines: how long each class of call may take.
        name: tells people whose session it is.
        patience: whether to wait while writes are refused.

    Attributes:
        number: the session's number as it is now.
        epoch: the start of the metadata server that knows, or is about to be told, what this mount holds.
        closes: the number of the newest call that told the server that files are closed.
        open_inodes: returns the inodes that the server must hold open for this mount.
        tell_open: tells the server, which asked with this number, what was opened without a call.
        held_locks: returns the locks that this mount holds, to be told a server of a new epoch.
        lose_locks: called when a session has died, before a new one begins; tells whether locks went with it.
        losses: how many sessions have died with locks.
        grant: whether the session counts as the only one.
        ring: where names are removed without a call meanwhile.
    """

    def __init__(self, client: BlockingClient, deadlines: Deadlines, name: str, patience: Patience) -> None:
        self._client, self._deadlines, self._name = client, deadlines, name
        self.grant = Grant()
        self.ring = ChangeRing(self.grant)
        self._patience = patience
        self.open_inodes: Callable[[], Sequence[int]] = tuple
        self.tell_open: Callable[[int], None] = lambda asked: None
        self.held_locks: Callable[[int], Sequence[FileLock]] = lambda epoch: ()
        self.lose_locks: Callable[[], bool] = lambda: False
        self.losses = 0
        self._renewing = threading.Lock()
        self._beating = threading.Lock()
        self._beats = 0
        """How many heartbeats were begun."""
        self._slots = threading.Semaphore(SLOTS)
        self._idle: list[tuple[int, Iterator[int]]] = [(slot, itertools.count(1)) for slot in range(SLOTS)]
        self._unsettled: list[_Slot] = []
        """Nobody knows what came of the last call of these slots: it may be carried out yet."""
        self._doubting = threading.Lock()
        """Held for moments: whether the grant is doubted goes with whether anything is unsettled."""
        self._settling = threading.Semaphore()
        self._settlings = 0
        """How often it was begun to settle calls."""
        self._not_settled: tuple[int, TransportError] | None = None
        """Which of these times was the last that servers which are away have ended, and why."""
        self._counter = itertools.count(1)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: Heartbeat | None = None
        self._failing = False
        self.number = 0
        self.epoch = 0
        self._reclaimed_at = 0
        """The epoch at which the server was told what is held in this session; 0: at none yet."""
        self.closes = 0
        self._numbering = threading.Lock()
        self._lease_seconds = 0.0
        self._alive_until = 0.0

    def _call(
        self, seconds: float, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Make a call for which there are so many seconds, or what the request of this thread has left."""
        return self._client.call(self._patience.left(seconds), method, *args, **kwargs)

    def begin(self, seconds: float) -> None:
        """Open the session within so many seconds. Raises what open_session raises."""
        self.grant.end()
        asked = seconds_passed()
        info = self._call(seconds, NamespaceMethods.open_session, self._name)
        self._lease_seconds = info.lease_ms / 1000
        self._alive_until = asked + self._lease_seconds
        self.number = info.session
        self.ring.move(info.ring, info.session)
        self.epoch = self._reclaimed_at = info.epoch

    def keep_alive(self) -> None:
        """Send heartbeats from now on."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the heartbeats and close the session, if the server can be reached at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._client.call_once(
                self._deadlines.connect_seconds, NamespaceMethods.close_session, self.number
            )
        except QuorumfsError as error:
            log.warning("the session was not closed, it will expire: %s", error)
        self.ring.close()

    def renew_after(self, dead: int) -> None:
        """Begin a new session unless another thread did so since session `dead` was found unknown."""
        with self._renewing:
            if self.number != dead:
                return
            log.warning("session %d expired; beginning a new one", dead)
            self.losses += self.lose_locks()
            self.begin(self._deadlines.metadata_seconds)
            self._reclaimed_at = 0  # if it cannot be said now what is open, the next heartbeat has it said
            with suppress(StaleEpoch):
                self._reclaim(self.epoch)

    def confirm(self) -> None:
        """Return if the session lives for certain, or a new one has been begun instead.

        Raises:
            Unavailable: nothing was heard of the metadata server for longer than the lease.
        """
        if seconds_passed() < self._alive_until:
            return
        self._beat()
        if seconds_passed() >= self._alive_until:
            raise Unavailable("this mount is cut off for longer than its lease")

    def new_block(self) -> bytes:
        """Return a block id of this session that was never used."""
        return struct.pack(">QQ", self.number, next(self._counter))

    def take_close_number(self) -> int:
        """Return the number of a new call that tells the server that files are closed."""
        with self._numbering:
            self.closes += 1
            return self.closes

    def owns(self, block: bytes) -> bool:
        """Tell whether a block id is of the session as it is now."""
        return block.startswith(struct.pack(">Q", self.number))

    def mutate(self, call: Callable[[Ticket], R]) -> R:
        """Carry out `call` with a ticket of its own; wait while all slots are in use.

        Raises:
            TransportError: also where an earlier call could not be settled; this one was not made then.
            QuorumfsError: what the call raises.
        """
        self.settle()
        if not self._slots.acquire(blocking=False):
            seconds = self._deadlines.metadata_seconds
            self._patience.acquire(self._slots, seconds, "all slots of the session were in use for too long")
        slot = _Slot(self.number, *self._idle.pop())
        try:
            answer = call(slot.ticket())
        except BaseException as error:
            if is_certain(error):
                self._let_go(slot)
            else:
                with self._doubting:
                    self._unsettled.append(slot)
                    self.grant.doubt()
            raise
        self._let_go(slot)
        return answer

    def _let_go(self, slot: _Slot) -> None:
        self._idle.append((slot.number, slot.sequences))
        self._slots.release()

    def settle(self) -> None:
        """Return when no change that failed here, nobody knows how, can be carried out any more.

        It may lie in the queue of a stopped server. Whoever was told that it failed looks what is there, or
        makes it once more, and it must not come after that: so all that looks or changes begins with this.

        Raises:
            TransportError: the metadata server cannot be told now.
            Interrupted: a signal ended the wait for it.
        """
        if self._unsettled:
            self._patience.persist(self._settle_in_turn)

    def _settle_in_turn(self) -> None:
        """Settle, or fail as a thread that was first and has tried from now on: deadlines do not add up."""
        seconds, begun_before = self._deadlines.metadata_seconds, self._settlings
        self._patience.acquire(self._settling, seconds, "calls of unknown outcome are still being settled")
        try:
            if self._not_settled is not None and self._not_settled[0] > begun_before and self._unsettled:
                error = self._not_settled[1]
                raise type(error)(error.message)
            self._settle_all(self._call, seconds)
        finally:
            self._settling.release()

    def _settle_all(self, call: Callable[..., None], seconds: float) -> None:
        self._settlings += 1
        try:
            self._settle_each(call, seconds)
        except TransportError as error:
            if not self._patience.is_over():  # it was tried for as long as others would try it
                self._not_settled = self._settlings, error
            raise

    def _settle_each(self, call: Callable[..., None], seconds: float) -> None:
        while self._unsettled:
            slot = self._unsettled[0]
            try:
                call(seconds, NamespaceMethods.settle, slot.ticket())
            except SessionUnknown:
                pass  # nothing of a session that is gone is carried out
            except (NoSpace, InternalError):
                return  # no reason to refuse a look; a change will be refused for the same
            with self._doubting:
                del self._unsettled[0]
                if not self._unsettled:
                    self.grant.trust()
            self._let_go(slot)

    def require_writable(self) -> None:
        """Raise WriteRefused while fewer than Qw data servers are up, unless Patience waits.

        That they were down a moment ago refuses nothing: the mediator is asked again.
        """
        if self._last is None or self._last.writable:
            return
        self._patience.persist(self._ask_writable)

    def _ask_writable(self) -> None:
        self._beat()
        last = self._last
        if last is not None and not last.writable:
            raise WriteRefused(last.reason)

    def require_room(self) -> None:
        """Raise NoSpace while too many data servers are full; the mediator is asked again, as above."""
        if self._last is None or not self._last.full:
            return
        self._beat()
        last = self._last
        if last.full:
            raise NoSpace(last.reason)

    def is_alone(self) -> bool:
        """Tell whether this mount is certainly the only one, and will be for a while."""
        return self.grant.seconds_left() > BIRTH_SECONDS

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._beat()
            except Exception:
                log.exception("a heartbeat failed unexpectedly")

    def _beat(self) -> None:
        """Have a heartbeat sent from now on, by this thread or by one that was first; wait for its end.

        One after the other: an older answer must not replace a newer one.
        """
        begun_before = self._beats
        with self._beating:
            if self._beats == begun_before:
                self._beats += 1
                self._ask_health()

    def _ask_health(self) -> None:
        session, asked = self.number, seconds_passed()
        try:
            answer = self._client.call_once(HEARTBEAT_DEADLINE_SECONDS, MediatorMethods.heartbeat, session)
        except SessionUnknown:
            self._try_to_renew(session)
            return
        except QuorumfsError as error:
            if not self._failing:
                log.warning("no heartbeat: %s", error)
            self._failing = True
            return
        if self._failing:
            log.info("heartbeats are answered again")
        self._failing = False
        self._client.forget_outages()
        self._last = answer
        self._alive_until = asked + self._lease_seconds
        self._try_to_settle()
        if session != self.number:
            return  # a new one was begun meanwhile, maybe at a server of a newer epoch
        if answer.epoch != self._reclaimed_at:
            self.grant.end()
            self._try_to_reclaim(session, answer.epoch)
        else:
            self.ring.expect(answer.ring_term)
            self.grant.extend(asked, answer.alone_ms / 1000)
            if answer.asks_opens:
                self._try_to_tell_open(answer.asks_opens)

    def _try_to_settle(self) -> None:
        if not self._unsettled or not self._settling.acquire(blocking=False):
            return
        try:
            self._settle_all(self._client.call_once, HEARTBEAT_DEADLINE_SECONDS)
        except QuorumfsError as error:
            log.warning("calls of unknown outcome may still be carried out: %s", error)
        finally:
            self._settling.release()

    def _try_to_tell_open(self, asked: int) -> None:
        try:
            self.tell_open(asked)
        except QuorumfsError as error:
            log.warning("what is open here was not told yet: %s", error)

    def _try_to_renew(self, dead: int) -> None:
        try:
            self.renew_after(dead)
        except QuorumfsError as error:
            log.warning("no new session yet: %s", error)

    def _try_to_reclaim(self, session: int, epoch: int) -> None:
        log.info("telling the metadata server, to which it is new, which files are open and locked")
        try:
            with self._renewing:
                if session == self.number and epoch != self._reclaimed_at:
                    self._reclaim(epoch)
        except SessionUnknown:
            self._try_to_renew(session)
            return
        except QuorumfsError as error:
            log.warning("open files were not reclaimed yet: %s", error)

    def _reclaim(self, epoch: int) -> None:
        # Before it is said what is held: what is asked for, or closed, from now on comes behind that.
        self.epoch, closes = epoch, self.closes
        session, seconds = self.number, self._deadlines.metadata_seconds
        *first, last = [*runs(self.open_inodes(), INODES_A_CALL)] or [[]]
        locks = list(self.held_locks(epoch))
        for inodes in first:  # not by `reclaim`, after which the server awaits no more
            self._call(seconds, NamespaceMethods.tell_open, session, inodes, 0, closes)
        self._call(seconds, NamespaceMethods.reclaim, session, epoch, last, locks, closes)
        self._reclaimed_at = epoch
