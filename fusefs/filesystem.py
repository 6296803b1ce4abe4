"""POSIX semantics by inode number, put together: files opened, names changed, the life of the mount's state.

Open files are in fusefs.files and what is in them in fusefs.contents, names in fusefs.names, attributes in
fusefs.attributes, listings in fusefs.directories, extended attributes in fusefs.xattrs, locks in
fusefs.locks. Knows neither errno nor the binding: it is a library over the two ports, and the mount is one of
its users. Raises errors of wire.errors. Safe in any thread.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable

from fusefs.ahead import FilesAhead
from fusefs.attributes import InodeAttributes
from fusefs.births import Births
from fusefs.cache import Asked, NameCache
from fusefs.callers import ROOT, Caller
from fusefs.contents import Contents
from fusefs.directories import Directories
from fusefs.files import Files
from fusefs.grant import Grant
from fusefs.handles import Handle, OpenInodes
from fusefs.keeping import SET_ID, Keeping
from fusefs.locks import FileLocks
from fusefs.names import Names, check_name
from fusefs.pages import PageDropper, PageLedger
from fusefs.patience import Patience
from fusefs.ports import BlockPort, NamespacePort, WritePermission
from fusefs.readahead import BlockReader
from fusefs.removals import Removals
from fusefs.walks import Walks
from fusefs.writeback import Writeback
from fusefs.xattrs import ExtendedAttributes
from wire.attribute_rules import without_set_id
from wire.errors import AlreadyExists, NotFound, QuorumfsError, StaleFile, WriteRefused
from wire.messages import AttributeChanges, Attributes, Birth, Usage

log = logging.getLogger(__name__)

CHORE_SECONDS = 1.0


class FileSystem:
    """One mount's file system.

    Args:
        namespace: names and attributes.
        blocks: blocks and commits.
        permission: whether writes are possible now.
        opens: the inodes that this mount has open, known also to the session that reclaims them.
        dirty_bytes: the most dirty and read-ahead bytes kept in memory.
        age_seconds: dirty data older than this is written out.
        patience: how its threads wait for servers that are away.
        grant: whether nobody else changes anything now.
    """

    def __init__(
        self,
        namespace: NamespacePort,
        blocks: BlockPort,
        permission: WritePermission,
        opens: OpenInodes,
        dirty_bytes: int,
        age_seconds: float,
        patience: Patience | None = None,
        grant: Grant | None = None,
    ) -> None:
        self.patience = patience = patience or Patience()
        self._namespace, self._permission, self._opens = namespace, permission, opens
        self._grant = grant = grant or Grant()
        self._cache, self._pages, self._walks = NameCache(grant), PageLedger(), Walks()
        self._writeback = Writeback(
            namespace, blocks, self._cache, self._pages, dirty_bytes * 3 // 4, age_seconds, patience
        )
        self._reader = BlockReader(blocks, dirty_bytes // 4, patience)
        self._ahead = FilesAhead(namespace, self._cache.asking, dirty_bytes // 32)
        self._births = Births(namespace, blocks, self._cache, self._pages, permission.is_alone, patience.look)
        self._removals = Removals(namespace, self._cache)
        self.keeping = Keeping(grant, self._cache, opens)
        self.attributes = InodeAttributes(namespace, self._cache, self._pages, self._births, opens)
        self.names = Names(namespace, self._cache, self._walks, self.attributes, self._births, opens, grant)
        self.directories = Directories(
            namespace, self._cache, self.names, self.attributes, self._births, self._ahead
        )
        self.xattrs = ExtendedAttributes(
            namespace,
            self._cache,
            self._births,
            opens,
            self.names.verify_unopened,
            self.attributes.is_special,
            self._forget,
        )
        self.locks = FileLocks(namespace, opens, self._writeback, self._pages, patience)
        self.files = Files(
            namespace,
            blocks,
            permission,
            self._cache,
            self._pages,
            opens,
            self._writeback,
            self._reader,
            Contents(namespace, self._pages, self._reader),
            self._ahead,
            self.locks,
            self._births,
        )
        self._stop = threading.Event()
        # What may wait for data servers, with `unavailable = "wait"` for as long as they are away, holds up
        # nothing that only the metadata server is needed for.
        self._threads = [
            threading.Thread(target=self._run, args=(chores,), name=name, daemon=True)
            for name, chores in (("chores", self._do_chores), ("write-out", self._write_out))
        ]

    def drop_pages_with(self, dropper: PageDropper) -> None:
        """Have the kernel forget pages and attributes through `dropper`."""
        self._pages.drop_with(dropper)

    def begin(self) -> None:
        """Begin the background chores: old dirty data, closed files, locks that are left."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Commit everything, tell what is closed, stop all threads; nobody waits past a deadline now."""
        self.patience.end()
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self.files.commit_all()
        self._opens.tell_closed()
        self._writeback.close()
        self._ahead.close()
        self._reader.close()

    def _run(self, chores: Callable[[], None]) -> None:
        while not self._stop.wait(CHORE_SECONDS):
            try:
                chores()
            except Exception:
                log.exception("a background chore failed")

    def _do_chores(self) -> None:
        self._births.settle_old()
        self._opens.tell_closed()
        self._ahead.drop_old()

    def _write_out(self) -> None:
        self.locks.give_up_left()
        self._write_out_old()

    def _write_out_old(self) -> None:
        try:
            self._permission.require_writable()
        except WriteRefused:
            return  # what waits may still be committed later: trying now would drop it
        self._writeback.write_out_old(self._opens.all())

    def open(self, ino: int, flags: int, walker: int = 0, who: Caller = ROOT) -> tuple[Handle, bool]:
        """Open a file as Files.open; if `walker` came through the cache, only if its path leads there.

        `who` opens it.

        Raises:
            StaleFile: it does not; a new walk will find what is there now.
        """
        handle, keep = self._open(ino, flags, walker)
        if flags & os.O_TRUNC:
            try:
                self.drop_set_id(handle.inode.base(), who)
            except QuorumfsError as error:
                self._writeback.fail(handle.inode, error)
                self.files.release(handle)
                raise
        return handle, keep

    def drop_set_id(self, attributes: Attributes, who: Caller) -> None:
        """Take the set-id bits off a file that a user other than root changes, as write(2) says."""
        mode = attributes.mode
        if not who.uid or not mode & SET_ID:
            return
        if (kept := without_set_id(mode, in_group=who.is_in(attributes.gid))) != mode:
            self.attributes.set(attributes.ino, AttributeChanges(mode=stat.S_IMODE(kept)))

    def _open(self, ino: int, flags: int, walker: int) -> tuple[Handle, bool]:
        walk = self._walks.take(walker, ino)
        if walk is None or walk.is_right(self._grant.era()):
            return self.files.open(ino, flags)
        try:
            return self.files.open(ino, flags, walk)
        except StaleFile:
            self.names.forget(walk)
            raise

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        walker: int = 0,
    ) -> Attributes:
        """Make a file, directory, symbolic link, FIFO, socket or device, by the type bits of `mode`."""
        check_name(name)
        self._births.settle()
        self.names.verify(walker, parent)
        token = self._cache.asking()
        with self.names.telling_removed(walker, parent):
            attributes = self._namespace.create(parent, name, mode, uid, gid, rdev, target, False)
        changed_ns = 0 if stat.S_ISDIR(mode) else attributes.ctime_ns
        self._cache.made(token, parent, name, attributes, changed_ns, new=True)
        return attributes

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int, walker: int = 0
    ) -> tuple[Attributes, Handle]:
        """Make a regular file and open it, as open(2) with O_CREAT.

        Raises:
            WriteRefused: fewer than Qw data servers are up; nothing was made.
            StaleFile: another mount has just made something else of that name, or put another directory in
                the place of this; a new walk will find it, and have the kernel check who may open it.
        """
        check_name(name)
        self.names.verify(walker, parent)
        self._permission.require_writable()
        token = self._cache.asking()
        if self._cache.is_absent(parent, name) and (directory := self._cache.attributes(parent)) is not None:
            self._permission.require_room()
            conceived = self._births.conceive(directory, name, mode, uid, gid)
            if conceived is not None:
                handle = self._adopt(token, conceived, flags, parent, name)
                self._births.expect(handle.inode, Birth(parent, name, conceived.mode, uid, gid))
                return conceived, handle
        try:
            with self.names.telling_removed(walker, parent):
                attributes = self._namespace.create(
                    parent, name, stat.S_IFREG | stat.S_IMODE(mode), uid, gid, 0, b"", True
                )
        except AlreadyExists:
            if flags & os.O_EXCL:
                raise
            self._cache.changed(names=((parent, name),))
            attributes = self.names.ask(parent, name)
            if not stat.S_ISREG(attributes.mode) or uid not in (0, attributes.uid):
                raise StaleFile(os.fsdecode(name)) from None
            handle, _ = self.open(attributes.ino, flags, who=Caller(uid, gid, walker))
            return self.attributes.seen(attributes), handle
        handle = self._adopt(token, attributes, flags, parent, name)
        self._cache.entered(parent, attributes.ctime_ns)
        return attributes, handle

    def _adopt(self, token: Asked, attributes: Attributes, flags: int, parent: int, name: bytes) -> Handle:
        handle = self.files.adopt(attributes, flags)
        handle.inode.made_as = (parent, name)
        self._cache.made(token, parent, name, attributes, 1, new=True)
        return handle

    def link(self, ino: int, parent: int, name: bytes, walker: int = 0) -> Attributes:
        """Give an inode one more name.

        Raises:
            NotFound: it has lost its last one, or the directory was removed.
            StaleFile: likewise, and what its name is of now was not looked for yet.
        """
        check_name(name)
        self._births.settle()
        self._births.settle(ino)
        self.names.verify(walker, ino, parent)
        token = self._cache.asking()
        try:
            attributes = self._namespace.link(ino, parent, name)
        except NotFound as error:
            if self._walks.is_known(walker, ino, self._grant.era()) and not self._walks.is_misled(walker):
                raise StaleFile(error.message) from None  # another file may have its name by now
            raise
        self._cache.made(token, parent, name, attributes, attributes.ctime_ns)
        return self.attributes.seen(attributes)

    def unlink(self, parent: int, name: bytes, walker: int = 0) -> None:
        """Remove a name; an open inode lives until its last close."""
        self._remove(parent, name, walker, directory=False)

    def rmdir(self, parent: int, name: bytes, walker: int = 0) -> None:
        """Remove an empty directory."""
        self._remove(parent, name, walker, directory=True)

    def _remove(self, parent: int, name: bytes, walker: int, directory: bool) -> None:
        check_name(name)
        self._settle_for(parent, name)
        self.names.verify(walker, parent)
        self.attributes.note_special(self._cache.find(parent, name))
        with self._opens.removing():
            token = self._cache.asking()
            try:
                after = None if directory else self._removals.remove(parent, name)
                if after is None:
                    with self.names.telling_removed(walker, parent):
                        after = (self._namespace.rmdir if directory else self._namespace.unlink)(parent, name)
            except BaseException:
                self._cache.changed(names=((parent, name),), inodes=(parent,))
                raise
            self._cache.removed(token, parent, name, after)
        self._walks.ended(walker)

    def _settle_for(self, parent: int, name: bytes) -> None:
        """Have the server know all that it can of files that are new here, and this name for certain."""
        self._births.settle()
        if (unborn := self._births.find(parent, name)) is not None:
            self._births.settle(unborn.ino)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0, walker: int = 0
    ) -> None:
        """Move a name atomically, as renameat2(2) with its flags."""
        check_name(name)
        check_name(new_name)
        self._settle_for(parent, name)
        self.names.verify(walker, parent, new_parent)
        self.attributes.note_special(self._cache.find(new_parent, new_name))
        with self._opens.removing():
            try:
                with self.names.telling_removed(walker, parent, new_parent):
                    self._namespace.rename(parent, name, new_parent, new_name, flags)
            finally:
                names = ((parent, name), (new_parent, new_name))
                self._cache.changed(names=names, inodes=(parent, new_parent))
        self._walks.ended(walker)

    def read_link(self, ino: int, walker: int = 0) -> bytes:
        """Return a symbolic link's target."""
        self.names.verify(walker, ino)
        return self._namespace.read_link(ino)

    def _forget(self) -> None:
        """Forget all that is cached."""
        self._reader.forget()
        self._ahead.forget()
        self._pages.doubt_all()
        self._cache.forget()

    def usage(self) -> Usage:
        """Return the room in the file system."""
        return self._namespace.usage()
