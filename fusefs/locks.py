"""The locks that this mount's programs hold: asked for at the metadata server, followed here.

The server decides. What it granted is followed here for three uses: to say it again after a restart of the
server, to give it up at close without a call for those who hold nothing, and to know which handles lost
their locks with a session. Such handles fail from then on (EIO) until the file is opened anew. Only what
is certain is said again, not what a call that is not answered yet may get or give up; what such a call
leaves in doubt is given up at the close. If any lock was held, other files that are open for writing fail as
well, until fsync has told so: nobody can tell what was written under it. Safe in any thread;
`FileLocks._mutex` is held for moments only, an inode's `locking` over a call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fusefs.handles import Handle, OpenInodes
from fusefs.inodes import Inode
from fusefs.pages import PageLedger
from fusefs.patience import CallLock, Patience
from fusefs.ports import NamespacePort
from fusefs.writeback import Writeback
from wire.errors import (
    InternalError,
    Interrupted,
    LocksLost,
    NoLocks,
    QuorumfsError,
    SessionUnknown,
    StaleEpoch,
    TransportError,
    Unavailable,
)
from wire.locks import LAST, Lock, locked, unlocked, weakened
from wire.messages import FileLock, LockHolder

log = logging.getLogger(__name__)

Change = Callable[[Iterable[Lock], Lock], list[Lock]]
"""What a call makes of the locks that are held."""

ATTEMPTS = 5
"""So often a call is made anew when the metadata server or the session changed under it."""


class _Before(NamedTuple):
    """What an inode's locks of one kind were, and under which session and metadata server."""

    generation: int
    epoch: int
    held: list[Lock]


class FileLocks:
    """All locks of one mount."""

    def __init__(
        self,
        namespace: NamespacePort,
        opens: OpenInodes,
        writeback: Writeback,
        pages: PageLedger,
        patience: Patience,
    ) -> None:
        self._is_over = patience.is_over
        self._namespace, self._opens, self._writeback, self._pages = namespace, opens, writeback, pages
        self._mutex = threading.Lock()
        self._held: dict[tuple[int, bool], list[Lock]] = {}
        self._doubtful: dict[tuple[int, bool], list[Lock]] = {}
        self._users: dict[Handle, set[tuple[bool, int]]] = {}
        self._left: dict[tuple[int, bool, int], Handle] = {}
        """Whose locks on which inode could not be given up at a close, and by which handle he had them.

        It stays here until that was done, also where the session died: the call may be under way, and go to
        the new one. Who locks there again waits for it: he may have another Inode than the handle has.
        """
        self._giving_up = CallLock(patience.look)
        """Held while what is left is given up."""
        self._unlocking = 0
        """So many calls are under way that give up locks."""
        self._epoch = 0
        self._generation = 0

    # for programs

    def set(self, handle: Handle, wanted: FileLock) -> None:
        """Get a lock now. What other mounts did before it was granted is seen from then on.

        Raises:
            WouldBlock: somebody else has it.
            LocksLost, QuorumfsError.
        """
        inode = handle.inode
        if (place := (wanted.ino, wanted.flock, wanted.owner)) in self._left:
            with self._giving_up, self._mutex:  # it goes with his next close: this lock is not to go along
                self._left.pop(place, None)
        if inode.birth is not None:
            self._writeback.commit(inode, durable=False)  # the server must know what is locked
        if not wanted.exclusive and self._holds(wanted):
            self._commit(inode)  # a downgrade lets others read what was written
        with inode.locking:
            # A whole-file lock changes its mode by giving up the old one, as flock(2) says.
            before = self._keep_certain(wanted, unlocked if wanted.flock else weakened)
            try:
                self._carry_out(handle, wanted, locked, self._ask)
            except QuorumfsError as error:
                if _may_be_granted(error):
                    self._doubt(wanted, handle)
                    raise
                if not wanted.flock and not self._restore(wanted, before):
                    handle.lost = LocksLost(
                        "a lock was made less exclusive, although not all of it was granted"
                    )
                    raise handle.lost from error
                raise

    def _ask(self, inode: Inode, wanted: FileLock) -> int:
        grant = self._namespace.set_lock(wanted)
        with inode.lock:
            inode.await_commit(grant.attributes.version)
            self._pages.changed(inode.ino, inode.learn_attributes(grant.attributes))
        self._pages.locked(inode.ino, grant.attributes.version)
        return grant.epoch

    def unset(self, handle: Handle, range_: FileLock) -> None:
        """Give up a range; what was written before is committed first, so that the next holder sees it.

        Raises:
            NoLocks: it lies within locks, which would be too many in two parts each.
            Interrupted: what was written is not committed yet; the lock is held.
            LocksLost, QuorumfsError.
        """
        inode = handle.inode
        if not self._holds(range_):
            return
        self._commit(inode)
        with inode.locking:
            before = self._keep_certain(range_, unlocked, 1)
            try:
                self._carry_out(handle, range_, unlocked, self._give_up)
            except LocksLost:
                pass
            except NoLocks as error:  # it would have parted one lock too many in two: all is held still
                if not self._restore(range_, before):
                    handle.lost = LocksLost("a range was not unlocked, and the locks around it were lost")
                    raise handle.lost from error
                raise
            except QuorumfsError:
                self._doubt(range_)
                raise
            finally:
                with self._mutex:
                    self._unlocking -= 1

    def _give_up(self, _inode: Inode, range_: FileLock) -> int:
        return self._namespace.unlock(range_)

    def _commit(self, inode: Inode) -> None:
        """Commit what was written under a lock. Raises Interrupted: that goes on, and the lock is needed."""
        try:
            self._writeback.commit(inode, durable=False)
        except Interrupted:
            raise
        except QuorumfsError as error:
            log.warning("inode %d: what was written under a lock was dropped: %s", inode.ino, error)

    def holder(self, wanted: FileLock) -> LockHolder | None:
        """Return who stands in the way of a lock; the pid is 0 if it is of another mount."""
        return self._namespace.get_lock(wanted)

    def wait(self, wanted: FileLock) -> None:
        """Return when a lock may be had, or after a moment. Raises Deadlock, QuorumfsError."""
        try:
            self._namespace.wait_lock(wanted)
        except SessionUnknown:
            return

    def closing(self, handle: Handle, owner: int) -> None:
        """An owner closes one of its descriptors of a file: its record locks go, whichever it set them by."""
        if not (self._users or self._held or self._doubtful):
            return  # nobody has locks here
        inode = handle.inode
        everything = FileLock(inode.ino, False, owner, 0, LAST, False, 0)
        self._forget_users(inode, (False, owner))
        self._try_to_unset(handle, everything)

    def released(self, handle: Handle) -> None:
        """The last descriptor of an open file description is closed: all that was set by it goes."""
        with self._mutex:
            users = self._users.pop(handle, set())
        for flock, owner in users:
            self._try_to_unset(handle, FileLock(handle.inode.ino, flock, owner, 0, LAST, False, 0))

    def _try_to_unset(self, handle: Handle, everything: FileLock) -> None:
        try:
            self.unset(handle, everything)
        except QuorumfsError as error:
            log.warning("inode %d: locks are given up later: %s", everything.ino, error)
            with self._mutex:
                self._left[everything.ino, everything.flock, everything.owner] = handle

    def give_up_left(self) -> None:
        """Give up what could not be at a close, if servers are back: others wait for it."""
        for place, handle in list(self._left.items()):
            ino, flock, owner = place
            with self._giving_up:
                if place not in self._left:
                    continue
                try:
                    self.unset(handle, FileLock(ino, flock, owner, 0, LAST, False, 0))
                except QuorumfsError:
                    return
                with self._mutex:
                    self._left.pop(place, None)

    def confirm(self, handle: Handle) -> None:
        """Make sure that a handle still has its locks.

        Raises:
            LocksLost: it has not, until it is opened anew.
            QuorumfsError: this mount is cut off for longer than its lease, so that nobody can tell.
        """
        if handle in self._users:
            self._namespace.confirm_session()
        handle.require_locks()

    # with the session

    def reclaim(self, epoch: int) -> list[FileLock]:
        """Return all locks, for a metadata server that started at `epoch`: answers of older ones are void."""
        with self._mutex:
            self._epoch = max(self._epoch, epoch)
            return [
                FileLock(ino, flock, lock.owner, lock.start, lock.last, lock.exclusive, lock.pid)
                for (ino, flock), held in self._held.items()
                for lock in held
            ]

    def lose(self) -> bool:
        """The session has died: drop what may have been written under its locks; tell whether it had any.

        Handles that had locks fail. If any were held, whoever has anything open for writing is told, and
        nothing of it that is not committed is ever: a lock of one file may have been about others.
        """
        with self._mutex:
            had_locks = bool(self._held or self._doubtful or self._unlocking)
            self._generation += 1
            self._epoch = 0  # the next session may be of a database that was begun anew
            handles, self._users, self._held, self._doubtful = list(self._users), {}, {}, {}
            error = LocksLost("this mount was cut off for longer than its lease: its locks are gone")
            for handle in handles:
                handle.lost = error
        lost = {handle.inode for handle in handles}
        for inode in lost:
            log.warning("inode %d: its locks are gone; opened anew it can be used again", inode.ino)
        for inode in self._opens.all() if had_locks else lost:
            self._writeback.fail(inode, error, locks=True)
            self._pages.stale(inode.ino)
        return had_locks

    # following

    def _carry_out(
        self,
        handle: Handle,
        lock: FileLock,
        change: Change,
        call: Callable[[Inode, FileLock], int],
    ) -> None:
        """Make a call, and follow it if the server and the session that answered are still there."""
        for _ in range(ATTEMPTS):
            handle.require_locks()
            generation = self._generation
            try:
                epoch = call(handle.inode, lock)
            except (SessionUnknown, StaleEpoch):
                if self._is_over():
                    break
                continue
            if self._note(handle, lock, change, generation, epoch):
                return
        raise Unavailable("the session and the metadata server changed again and again")

    def _note(self, handle: Handle, lock: FileLock, change: Change, generation: int, epoch: int) -> bool:
        """Follow an answer; return False if the session or the server that gave it is gone."""
        with self._mutex:
            if generation != self._generation or epoch < self._epoch:
                return False
            _change(self._held, lock, change)
            _change(self._doubtful, lock, unlocked)
            if change is locked:
                self._users.setdefault(handle, set()).add((lock.flock, lock.owner))
            return True

    def _keep_certain(self, lock: FileLock, keep: Change, unlocking: int = 0) -> _Before:
        """Before a call: until the answer, only what `keep` leaves of its range is certain."""
        with self._mutex:
            self._unlocking += unlocking
            held = self._held.get((lock.ino, lock.flock), [])
            _change(self._held, lock, keep)
            return _Before(self._generation, self._epoch, held)

    def _restore(self, lock: FileLock, before: _Before) -> bool:
        """A call was refused: all is as before, or False if a new server was told of less meanwhile."""
        with self._mutex:
            if before.generation != self._generation:
                return True  # all is lost, and `lose` has said so
            if before.epoch == self._epoch and before.held:
                self._held[lock.ino, lock.flock] = before.held
            return self._held.get((lock.ino, lock.flock), []) == before.held

    def _doubt(self, lock: FileLock, handle: Handle | None = None) -> None:
        """A call was not answered: what it was about is given up at the close, and not said again."""
        with self._mutex:
            _change(self._doubtful, lock, locked)
            if handle is not None:
                self._users.setdefault(handle, set()).add((lock.flock, lock.owner))

    def _holds(self, range_: FileLock) -> bool:
        """Tell whether an owner holds any of a range, or may hold it."""
        place = range_.ino, range_.flock
        return any(
            lock.owner == range_.owner and lock.start <= range_.last and range_.start <= lock.last
            for locks in (self._held, self._doubtful)
            for lock in locks.get(place, ())
        )

    def _forget_users(self, inode: Inode, user: tuple[bool, int]) -> None:
        with self._mutex:
            for handle, users in list(self._users.items()):
                if handle.inode is inode:
                    users.discard(user)
                    if not users:
                        del self._users[handle]


def _may_be_granted(error: QuorumfsError) -> bool:
    """Tell whether a lock may have been granted by a call that failed so: it was no refusal, or unknown."""
    return isinstance(error, TransportError | Interrupted | InternalError) or type(error) is QuorumfsError


def _own(lock: FileLock) -> Lock:
    """Return a lock as it is followed here, where all are of one session."""
    return Lock(0, lock.owner, lock.start, lock.last, lock.exclusive, lock.pid)


def _change(locks: dict[tuple[int, bool], list[Lock]], lock: FileLock, change: Change) -> None:
    place = lock.ino, lock.flock
    held = change(locks.get(place, ()), _own(lock))
    if held:
        locks[place] = held
    else:
        locks.pop(place, None)
