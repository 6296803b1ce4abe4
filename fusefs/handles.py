"""Open files and directories of this mount: handles, and the inodes that they share.

`OpenInodes` tells the server which inodes this mount has open. That an inode is not open any more is
told later and for several at once, so that closing costs no call; opening it again takes that back.
While the mount is alone, what it has open is told before it removes a name, or when the server asks: nobody
else can remove a file before that.
Safe in any thread; no lock of an inode is held while the server is called.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusefs.cache import Asked, keep_newest
from fusefs.inodes import Inode, Learnt
from fusefs.patience import LOOK_SECONDS
from fusefs.ports import NamespacePort
from fusefs.walks import Walk
from wire.errors import Busy, QuorumfsError
from wire.messages import Attributes, Entry, FileMap, Opened

log = logging.getLogger(__name__)

MOST_WAITING_CLOSES = 64
MOST_DURABLE = 4096
TELLING_SECONDS = 1.0
"""A heartbeat waits so long for another thread that tells what is open; the server will ask again."""


class Handle:
    """One open file description (open(2)): several file descriptors may share it."""

    __slots__ = (
        "appending",
        "brought",
        "drops",
        "error",
        "inode",
        "lost",
        "read_from",
        "read_to",
        "reading",
        "uncached",
        "unsettled",
        "window",
        "writing",
    )

    def __init__(self, inode: Inode, flags: int) -> None:
        access = flags & os.O_ACCMODE
        self.inode = inode
        self.reading = access != os.O_WRONLY
        self.writing = access != os.O_RDONLY or bool(flags & os.O_TRUNC)
        """Whether it changes the file: an open with O_TRUNC does, also one that is for reading only."""
        self.appending = bool(flags & os.O_APPEND)
        self.brought = False
        """Whether the file's bytes came with the answer to open."""
        self.drops: int | None = None
        """Which version was opened, while the kernel may not have dropped its older pages at the open yet."""
        self.unsettled = False
        """Whether the kernel may not know how long the file was when it was opened."""
        self.uncached = False
        """Whether its reads and writes pass the kernel's page cache by."""
        self.lost: QuorumfsError | None = None
        """Its locks are gone: it fails from now on."""
        self.error: QuorumfsError | None = None
        """A failed write-back: every write and close reports it until fsync has."""
        self.read_from = self.read_to = -1
        """The run of bytes that was read in sequence so far."""
        self.window = 0
        """How many blocks are read ahead."""

    def require_locks(self) -> None:
        """Raise LocksLost if its locks are gone. Under the lock of the inode, none goes meanwhile."""
        if self.lost is not None:
            raise self.lost

    def require_changeable(self) -> None:
        """Raise what a change by it is to fail with. Under the lock of the inode, as above."""
        self.require_locks()
        if self.error is not None:
            raise self.error

    @property
    def may_commit(self) -> bool:
        """Whether a close may have something to commit, or to tell of that: bytes, or the file itself."""
        return self.writing or self.inode.birth is not None or self.error is not None


class DirectoryHandle:
    """An open directory, and what was read of it so far, in the order of names. One reader at a time."""

    __slots__ = ("began", "entries", "ino", "is_complete")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.began: Asked | None = None
        """When reading began; None before it does."""
        self.entries: list[Entry] = []
        self.is_complete = False

    def begin(self, asked: Asked) -> None:
        """Begin to read, or begin anew."""
        self.began, self.entries, self.is_complete = asked, [], False


class OpenInodes:
    """The inodes that this mount has open, each with the number of its users.

    `look` raises Interrupted if what the thread that waits here answers has been interrupted.
    """

    def __init__(self, namespace: NamespacePort, look: Callable[[], None] = lambda: None) -> None:
        self._namespace, self._look = namespace, look
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._inodes: dict[int, Inode] = {}
        self._waiting: set[int] = set()
        self._closing: set[int] = set()
        self._untold: dict[int, bool] = {}
        """What was opened without a call, and whether the server may have been told nevertheless."""
        self._being_told: frozenset[int] = frozenset()
        self._telling = threading.Lock()
        self._removing = 0
        self._durable: OrderedDict[int, int] = OrderedDict()
        """Of files that were closed last: the version that is known to survive a power loss."""

    def get(self, ino: int) -> Inode | None:
        """Return an inode if it is open here."""
        inode = self._inodes.get(ino)
        return inode if inode is not None and inode.attributes is not None else None

    def find(self, ino: int) -> Inode | None:
        """Return an inode if it is open here, or is being opened: then nothing of it may be known yet."""
        return self._inodes.get(ino)

    def all(self) -> list[Inode]:
        with self._lock:
            return [inode for inode in self._inodes.values() if inode.attributes is not None]

    def numbers(self) -> list[int]:
        """Return the inodes that the server, to which this mount is new, must hold open for it."""
        with self._lock:
            self._durable.clear()  # it may have an older database
            self._untold.update(dict.fromkeys(self._untold, True))
            return [*self._inodes, *self._waiting]

    def open(
        self,
        ino: int,
        writing: bool,
        walk: Walk | None,
        changed: Callable[[int, Learnt], None],
        read: bool = False,
    ) -> tuple[Inode, Opened]:
        """Open an inode at the server; return it and the answer.

        With `read`, for reading, the bytes of a small file come along. `changed` is told, before anybody
        else, what the answer says of its contents.

        With a `walk` it is opened only if that leads to it still; else StaleFile is raised.

        Whoever calls this must call `release` later.
        """
        inode = self._use(ino)
        try:
            start, names = (walk.start, walk.names) if walk is not None else (ino, [])
            if read:
                opened = self._namespace.open_and_read(ino, start, names)
            else:
                opened = self._namespace.open(ino, writing, start, names)
            with self._lock:
                self._untold.pop(ino, None)
            with inode.lock:
                inode.await_commit(opened.attributes.version)
                changed(ino, inode.learn_attributes(opened.attributes))
                inode.learn_map(0, opened.map)
        except BaseException:
            with self._lock:
                if ino in self._untold:
                    self._untold[ino] = True
            self.release(inode)
            raise
        return inode, opened

    def open_known(self, opened: Opened, is_right: Callable[[], bool]) -> Inode | None:
        """Open an inode without a call, by what the server would answer; return it.

        None: it must be opened at the server. `is_right` tells whether `opened` is certain to be right now;
        it is asked while no name is being removed through this mount.

        Whoever gets an inode must call `release` later.
        """
        ino = opened.attributes.ino
        with self._lock:
            if self._removing or ino in self._inodes or ino in self._closing or not is_right():
                return None
            inode = self._begin(ino)
            inode.references = 1
            if ino in self._waiting:
                self._waiting.discard(ino)
            else:
                self._untold[ino] = False
        with inode.lock:
            inode.learn_attributes(opened.attributes)
            inode.learn_map(0, opened.map)
        return inode

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Within, this mount may remove names: the server knows of all that is open here.

        Raises:
            QuorumfsError: it could not be told.
        """
        with self._lock:
            self._removing += 1
        try:
            if self._untold or self._being_told:
                self.tell_open()
            yield
        finally:
            with self._lock:
                self._removing -= 1

    def tell_open(self, asked: int = 0) -> None:
        """Tell the server what was opened without a call; if it `asked`, with that number.

        Raises:
            QuorumfsError: it could not be told; when it asked, it will ask again.
        """
        while not self._telling.acquire(timeout=TELLING_SECONDS if asked else LOOK_SECONDS):
            if asked:
                raise Busy("it is being told already")
            self._look()
        try:
            with self._lock:
                batch = self._being_told = frozenset(self._untold)
                self._untold.clear()
            if batch or asked:
                self._namespace.tell_open(sorted(batch), asked)
        except BaseException:
            with self._lock:
                self._untold.update({ino: True for ino in batch if ino in self._inodes})
            raise
        finally:
            with self._lock:
                self._being_told = frozenset()
            self._telling.release()

    def adopt(self, attributes: Attributes) -> Inode:
        """Take over an inode that `create` has opened."""
        inode = self._use(attributes.ino)
        with inode.lock:
            inode.learn_attributes(attributes)
            inode.learn_map(
                0, FileMap(attributes.version, attributes.size, [], complete=attributes.size == 0)
            )
            inode.durable_version = attributes.version
        return inode

    def release(self, inode: Inode) -> None:
        """Give up one use of an inode; the last tells the server, sooner or later."""
        with self._lock:
            inode.references -= 1
            if inode.references:
                return
            del self._inodes[inode.ino]
            if inode.attributes is not None and inode.attributes.version == inode.durable_version:
                keep_newest(self._durable, inode.ino, inode.durable_version, MOST_DURABLE)
            if self._untold.pop(inode.ino, True) is False:
                return  # the server never heard of it
            self._waiting.add(inode.ino)
            soon = inode.attributes is None or inode.attributes.nlink == 0
            if not soon and len(self._waiting) < MOST_WAITING_CLOSES:
                return
        self.tell_closed()

    @contextmanager
    def closed(self, ino: int) -> Iterator[bool]:
        """Within, an inode is not open here, the server knows that, and who opens it waits.

        Yields whether that is so: not if it is open.

        Raises:
            QuorumfsError: the server could not be told.
        """
        with self._lock:
            while ino in self._closing or ino in self._being_told:
                if not self._changed.wait(LOOK_SECONDS):
                    self._look()
            is_closed = ino not in self._inodes
            if is_closed:
                self._closing.add(ino)
                self._waiting.discard(ino)
        if not is_closed:
            yield False
            return
        try:
            self._namespace.close([ino])  # also if it was told: that may have failed
            yield True
        finally:
            with self._lock:
                self._closing.discard(ino)
                self._changed.notify_all()

    def tell_closed(self) -> None:
        """Tell the server which inodes are not open any more."""
        with self._lock:
            batch = self._waiting - self._closing - self._being_told
            self._waiting -= batch
            self._closing |= batch
        if not batch:
            return
        try:
            self._namespace.close(sorted(batch))
        except QuorumfsError as error:
            # The server lets go of them when the session ends; nothing is lost but room.
            log.warning("cannot tell that %d files are closed: %s", len(batch), error)
        finally:
            with self._lock:
                self._closing -= batch
                self._changed.notify_all()

    def _use(self, ino: int) -> Inode:
        with self._lock:
            while ino in self._closing:
                if not self._changed.wait(LOOK_SECONDS):
                    self._look()
            self._waiting.discard(ino)
            inode = self._inodes.get(ino)
            if inode is None:
                inode = self._begin(ino)
            inode.references += 1
            return inode

    def _begin(self, ino: int) -> Inode:
        inode = self._inodes[ino] = Inode(ino, self._look)
        inode.durable_version = self._durable.get(ino, inode.durable_version)
        return inode
