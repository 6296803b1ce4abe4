"""Files that programs have created and that no server knows yet: their first commit makes them.

Only while this mount is certainly the only one, so that nobody can miss them. A call that needs the file, or
the list of its directory, at the server has it made first (`settle`); so does age. What is decided here is
when; the transaction is the commit's. Safe in any thread; `Inode.commit_lock` is taken within.
"""

from __future__ import annotations

import logging
import stat
import threading
import time
from collections.abc import Callable, Iterable

from fusefs.cache import NameCache
from fusefs.inodes import Inode
from fusefs.pages import PageLedger
from fusefs.patience import CallLock
from fusefs.ports import BlockPort, NamespacePort
from wire.attribute_rules import changed
from wire.errors import LocksLost, NamespaceError, NoSpace, QuorumfsError, SessionUnknown
from wire.messages import AttributeChanges, Attributes, Birth, Commit

log = logging.getLogger(__name__)

NUMBERS = 1024
"""So many inode numbers are reserved by one call."""
MOST_SECONDS = 1.0
"""A file is made so long after its creation at the latest, whatever its program does."""


class Births:
    """The files of a mount that are to be made by their first commit.

    Args:
        namespace: gives inode numbers.
        blocks: makes files.
        cache: is told when a directory has changed.
        pages: is told so for the kernel.
        may_defer: tells whether this mount is the only one, and will be for a while.
        look: raises Interrupted, as for fusefs.patience.CallLock.
    """

    def __init__(
        self,
        namespace: NamespacePort,
        blocks: BlockPort,
        cache: NameCache,
        pages: PageLedger,
        may_defer: Callable[[], bool],
        look: Callable[[], None],
    ) -> None:
        self._namespace, self._blocks, self._may_defer = namespace, blocks, may_defer
        self._cache, self._pages = cache, pages
        self._lock = threading.Lock()
        self._reserving = CallLock(look)
        self._free = range(0)
        self._waiting: dict[int, tuple[Inode, float]] = {}

    def conceive(self, parent: Attributes, name: bytes, mode: int, uid: int, gid: int) -> Attributes | None:
        """Return the attributes of a new empty file in a directory that lacks the name, without asking.

        None: it must be made at once, for others may see the directory, or who owns the file is not plain.
        """
        if parent.mode & stat.S_ISGID or not parent.nlink or not self._may_defer():
            return None
        now = time.time_ns()
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        return Attributes(self._take_number(), mode, 1, uid, gid, 0, 0, 0, now, now, now, 1)

    def _take_number(self) -> int:
        while True:
            with self._lock:
                if self._free:
                    number, self._free = self._free[0], self._free[1:]
                    return number
            with self._reserving:
                self._reserve()

    def _reserve(self) -> None:
        """Have numbers reserved, unless another thread was first."""
        if self._free:
            return
        first = self._namespace.reserve_inodes(NUMBERS)
        with self._lock:
            self._free = range(first, first + NUMBERS)

    def expect(self, inode: Inode, birth: Birth) -> None:
        """Have the first commit of an inode, which is open here, make its file."""
        with self._lock:
            inode.birth = birth
            self._waiting[inode.ino] = inode, time.monotonic()

    def change(self, inode: Inode, changes: AttributeChanges) -> bool:
        """Give a file that no server knows yet other attributes; tell whether it was one.

        Raises:
            InvalidArgument: there are no such attributes.
        """
        with inode.commit_lock, inode.lock:
            birth = inode.birth
            if birth is None or not self._may_defer():
                return False
            new = changed(inode.base(), changes, time.time_ns())
            inode.birth = birth._replace(mode=new.mode, uid=new.uid, gid=new.gid)
            inode.attributes = new
            if changes.mtime_ns is not None:
                inode.set_mtime(changes.mtime_ns)
            return True

    def find(self, parent: int, name: bytes) -> Inode | None:
        """Return the inode of a name that no server knows yet."""
        if not self._waiting:
            return None
        with self._lock:
            self._forget_made()
            for inode, _ in self._waiting.values():
                if inode.birth is not None and (inode.birth.parent, inode.birth.name) == (parent, name):
                    return inode
        return None

    def waiting(self) -> list[int]:
        """Return the inodes whose files are still to be made."""
        with self._lock:
            self._forget_made()
            return [*self._waiting]

    def settle(self, *inodes: int) -> None:
        """Make files now, empty as long as nothing of them is committed; without arguments, all.

        Of all, one that the server refuses holds up nobody: its own program is told.

        Raises:
            QuorumfsError: one that was asked for cannot be made, or nobody knows.
        """
        if not self._waiting:
            return
        with self._lock:
            self._forget_made()
            chosen = [inode for ino, (inode, _) in self._waiting.items() if not inodes or ino in inodes]
        self._make_each(chosen, tell=bool(inodes))

    def settle_in(self, directory: int) -> bool:
        """Make the files of one directory now, as `settle` makes all; tell whether there were any."""
        if not self._waiting:
            return False
        with self._lock:
            self._forget_made()
            chosen = [i for i, _ in self._waiting.values() if i.birth and i.birth.parent == directory]
        self._make_each(chosen, tell=False)
        return bool(chosen)

    def settle_old(self) -> None:
        """Make what has waited for long; all, if others may come soon. Failures are logged."""
        oldest = time.monotonic() - MOST_SECONDS if self._may_defer() else float("inf")
        with self._lock:
            self._forget_made()
            chosen = [inode for inode, since in self._waiting.values() if since < oldest]
        for inode in chosen:
            try:
                self._make(inode)
            except QuorumfsError as error:
                log.warning("inode %d could not be made yet: %s", inode.ino, error)

    def _make_each(self, inodes: Iterable[Inode], *, tell: bool) -> None:
        for inode in inodes:
            try:
                self._make(inode)
            except (NamespaceError, LocksLost) as error:
                if tell:
                    raise
                log.warning("inode %d could not be made: %s", inode.ino, error)

    def _make(self, inode: Inode) -> None:
        with inode.commit_lock:
            if inode.birth is None:
                return
            birth, asked = inode.birth, self._cache.asking()
            try:
                attributes = self._write(inode, birth)
            except (NamespaceError, LocksLost) as error:
                if not error.resent and not isinstance(error, NoSpace):
                    self._refuse(inode, birth, error)
                raise
            with inode.lock:
                inode.birth = None
                inode.learn_attributes(attributes)
            self._cache.set(asked, attributes)
            self._cache.entered(birth.parent, attributes.ctime_ns)
            self._pages.attributes_changed(inode.ino, birth.parent)

    def _write(self, inode: Inode, birth: Birth) -> Attributes:
        nothing = Commit(None, [], 0, [], times_of(inode), durable=False)
        try:
            self._require_locks(inode)
            return self._blocks.write_file(inode.ino, nothing, [], birth)
        except SessionUnknown:  # a new one was begun meanwhile
            self._require_locks(inode)
            return self._blocks.write_file(inode.ino, nothing, [], birth)

    def _require_locks(self, inode: Inode) -> None:
        if inode.losses:
            raise LocksLost("a file that may have been created under a lock that is gone is not made")

    def _refuse(self, inode: Inode, birth: Birth, error: QuorumfsError) -> None:
        """Forget a file that will never be, for its place is gone or taken; let its program be told why."""
        with inode.lock:
            inode.birth = None
            inode.last_error = error
            for handle in inode.handles:
                handle.error = error
        self._cache.changed(names=((birth.parent, birth.name),))
        self._pages.attributes_changed(inode.ino, birth.parent)

    def give_up(self, inode: Inode) -> bool:
        """Forget a file that was never made, at its last close; tell whether it was one.

        Who makes it just now ends that first.
        """
        with inode.commit_lock, self._lock:
            self._waiting.pop(inode.ino, None)
            unborn, inode.birth = inode.birth is not None, None
        return unborn

    def _forget_made(self) -> None:
        for ino in [ino for ino, (inode, _) in self._waiting.items() if inode.birth is None]:
            del self._waiting[ino]


def times_of(inode: Inode) -> AttributeChanges:
    """Return the times that a new file has, as its programs were told."""
    return AttributeChanges(atime_ns=inode.base().atime_ns, mtime_ns=inode.base().mtime_ns)
