"""The locks that this mount's programs hold: asked for at the metadata server, followed here.

The server decides. What it granted is followed here for three uses: to say it again after a restart of the
server, to give it up at close without a call for those who hold nothing, and to know which handles lost
their locks with a session. Such handles fail from then on (EIO) until the file is opened anew. Safe in
any thread; `FileLocks._mutex` is held for moments only, an inode's `locking` over a call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from fusefs.cache import PageLedger
from fusefs.handles import Handle
from fusefs.inodes import Inode
from fusefs.ports import NamespacePort
from fusefs.writeback import Writeback
from wire.errors import (
    LocksLost,
    QuorumfsError,
    SessionUnknown,
    TransportError,
    Unavailable,
    WouldBlock,
)
from wire.locks import LAST, Lock, locked, unlocked
from wire.messages import FileLock, LockHolder

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""So often a call is made anew when the metadata server or the session changed under it."""


class FileLocks:
    """All locks of one mount."""

    def __init__(self, namespace: NamespacePort, writeback: Writeback, pages: PageLedger) -> None:
        self._namespace, self._writeback, self._pages = namespace, writeback, pages
        self._mutex = threading.Lock()
        self._held: dict[tuple[int, bool], list[Lock]] = {}
        self._users: dict[Handle, set[tuple[bool, int]]] = {}
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
        if not wanted.exclusive and self._holds(wanted):
            self._commit(inode)  # a downgrade lets others read what was written
        with inode.locking:
            try:
                self._carry_out(handle, wanted, locked, self._ask)
            except WouldBlock:
                if wanted.flock:
                    self._note(handle, wanted, unlocked)
                raise
            except TransportError:
                # It may have been granted: it is given up at the close, as if it had been.
                self._note(handle, wanted, locked)
                raise

    def _ask(self, inode: Inode, wanted: FileLock) -> int:
        grant = self._namespace.set_lock(wanted)
        with inode.lock:
            inode.learn_attributes(grant.attributes)
        if not self._pages.opened(inode.ino, grant.attributes.version):
            self._pages.drop_now(inode.ino)
        return grant.epoch

    def unset(self, handle: Handle, range_: FileLock) -> None:
        """Give up a range; what was written before is committed first, so that the next holder sees it."""
        inode = handle.inode
        if not self._holds(range_):
            return
        self._commit(inode)
        with inode.locking:
            try:
                self._carry_out(handle, range_, unlocked, self._give_up)
            except LocksLost:
                pass

    def _give_up(self, _inode: Inode, range_: FileLock) -> int:
        return self._namespace.unlock(range_)

    def _commit(self, inode: Inode) -> None:
        try:
            self._writeback.commit(inode, durable=False)
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
            log.warning("inode %d: locks are given up with the session only: %s", everything.ino, error)

    def confirm(self, handle: Handle) -> None:
        """Make sure that a handle still has its locks.

        Raises:
            LocksLost: it has not, until it is opened anew.
            QuorumfsError: this mount is cut off for longer than its lease, so that nobody can tell.
        """
        if handle in self._users:
            self._namespace.confirm_session()
        if handle.lost is not None:
            raise handle.lost

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

    def lose(self) -> None:
        """The session has died: fail all handles that had locks, and drop what they had not committed."""
        with self._mutex:
            self._generation += 1
            handles, self._users, self._held = list(self._users), {}, {}
            error = LocksLost("this mount was cut off for longer than its lease: its locks are gone")
            for handle in handles:
                handle.lost = error
        for inode in {handle.inode for handle in handles}:
            log.warning("inode %d: its locks are gone; opened anew it can be used again", inode.ino)
            with inode.lock:
                inode.losses += 1
            self._writeback.fail(inode, error)
            self._pages.stale(inode.ino)

    # following

    def _carry_out(
        self,
        handle: Handle,
        lock: FileLock,
        change: Callable[[Iterable[Lock], Lock], list[Lock]],
        call: Callable[[Inode, FileLock], int],
    ) -> None:
        """Make a call, and follow it if the server and the session that answered are still there."""
        for _ in range(ATTEMPTS):
            if handle.lost is not None:
                raise handle.lost
            generation = self._generation
            try:
                epoch = call(handle.inode, lock)
            except SessionUnknown:
                continue
            if self._note(handle, lock, change, generation, epoch):
                return
        raise Unavailable("the session and the metadata server changed again and again")

    def _note(
        self,
        handle: Handle,
        lock: FileLock,
        change: Callable[[Iterable[Lock], Lock], list[Lock]],
        generation: int | None = None,
        epoch: int | None = None,
    ) -> bool:
        with self._mutex:
            if generation is not None and generation != self._generation:
                return False
            if epoch is not None and epoch < self._epoch:
                return False
            self._change(lock, change)
            if change is locked:
                self._users.setdefault(handle, set()).add((lock.flock, lock.owner))
            return True

    def _change(self, lock: FileLock, change: Callable[[Iterable[Lock], Lock], list[Lock]]) -> None:
        key = lock.ino, lock.flock
        held = change(self._held.get(key, ()), _own(lock))
        if held:
            self._held[key] = held
        else:
            self._held.pop(key, None)

    def _holds(self, range_: FileLock) -> bool:
        """Tell whether an owner holds any of a range."""
        return any(
            lock.owner == range_.owner and lock.start <= range_.last and range_.start <= lock.last
            for lock in self._held.get((range_.ino, range_.flock), ())
        )

    def _forget_users(self, inode: Inode, user: tuple[bool, int]) -> None:
        with self._mutex:
            for handle, users in list(self._users.items()):
                if handle.inode is inode:
                    users.discard(user)
                    if not users:
                        del self._users[handle]


def _own(lock: FileLock) -> Lock:
    """Return a lock as it is followed here, where all are of one session."""
    return Lock(0, lock.owner, lock.start, lock.last, lock.exclusive, lock.pid)
