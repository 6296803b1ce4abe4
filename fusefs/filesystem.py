"""POSIX semantics by inode number: the namespace, attributes, and the life of the mount's state.

Contents are in fusefs.files, extended attributes in fusefs.xattrs. Knows neither errno nor the binding: it is
a library over the two ports, and the mount is one of its users. Raises errors of wire.errors. Safe in any
thread.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fusefs.ahead import FilesAhead
from fusefs.births import Births
from fusefs.cache import Asked, NameCache, keep_newest
from fusefs.files import Files
from fusefs.grant import Grant
from fusefs.handles import DirectoryHandle, Handle, OpenInodes
from fusefs.keeping import Keeping
from fusefs.locks import FileLocks
from fusefs.pages import PageDropper, PageLedger
from fusefs.patience import Patience
from fusefs.ports import BlockPort, NamespacePort, WritePermission
from fusefs.readahead import BlockReader
from fusefs.walks import Walk, Walks
from fusefs.writeback import SET_ID, Writeback
from fusefs.xattrs import ExtendedAttributes
from wire.errors import (
    AlreadyExists,
    NameTooLong,
    NotADirectory,
    NotFound,
    QuorumfsError,
    StaleFile,
    WriteRefused,
)
from wire.messages import ROOT_INODE, AttributeChanges, Attributes, Birth, Entry, Usage

log = logging.getLogger(__name__)

NAME_BYTES = 255
DIRECTORY_RUN = 1000
MOST_SPECIALS = 1024
"""So many that are no regular files, and were opened or removed here last, may be looked at once removed."""
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
        self._grant = grant or Grant()
        self._names, self._pages, self._walks = NameCache(self._grant), PageLedger(), Walks()
        self._writeback = Writeback(
            namespace, blocks, self._names, self._pages, dirty_bytes * 3 // 4, age_seconds, patience
        )
        self._reader = BlockReader(blocks, dirty_bytes // 4, patience)
        self._ahead = FilesAhead(namespace, self._names.asking, dirty_bytes // 32)
        self._births = Births(namespace, blocks, self._names, self._pages, permission.is_alone)
        self.keeping = Keeping(self._grant, self._names, opens)
        self.xattrs = ExtendedAttributes(
            namespace, self._names, self._births, opens, self.verify_unopened, self._forget
        )
        self.locks = FileLocks(namespace, opens, self._writeback, self._pages)
        self.files = Files(
            namespace,
            blocks,
            permission,
            self._names,
            self._pages,
            opens,
            self._writeback,
            self._reader,
            self._ahead,
            self.locks,
            self._births,
        )
        self._removals = 0
        """How many names were removed: each may have been the name of an open file that was written to."""
        self._specials: OrderedDict[int, Attributes] = OrderedDict()
        """What directories, FIFOs and others that were opened or removed here last were like."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_chores, name="chores", daemon=True)

    def drop_pages_with(self, dropper: PageDropper) -> None:
        """Have the kernel forget pages and attributes through `dropper`."""
        self._pages.drop_with(dropper)

    def begin(self) -> None:
        """Begin the background chores: old dirty data, closed files, locks that are left."""
        self._thread.start()

    def end(self) -> None:
        """Commit everything, tell what is closed, stop all threads; nobody waits past a deadline now."""
        self.patience.end()
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.files.commit_all()
        self._opens.tell_closed()
        self._writeback.close()
        self._ahead.close()
        self._reader.close()

    def _run_chores(self) -> None:
        while not self._stop.wait(CHORE_SECONDS):
            try:
                self._births.settle_old()
                self._opens.tell_closed()
                self.locks.give_up_left()
                self._write_out_old()
                self._ahead.drop_old()
            except Exception:
                log.exception("a background chore failed")

    def _write_out_old(self) -> None:
        try:
            self._permission.require_writable()
        except WriteRefused:
            return  # what waits may still be committed later: trying now would drop it
        self._writeback.write_out_old(self._opens.all())

    # names

    def lookup(self, parent: int, name: bytes, walker: int = 0) -> Attributes:
        """Return the attributes of a name's inode. Raises NotFound, NotADirectory, NameTooLong, StaleFile.

        `walker` is the thread that asks; its next calls rely on what it was told here.
        """
        era = self._grant.era()
        unborn = self._births.find(parent, name)
        attributes = unborn.base() if unborn is not None else self._find(parent, name, walker)
        fresh = attributes is None
        if attributes is None:
            attributes = self._ask_name(parent, name, walker)
        self._walks.step(walker, parent, name, attributes.ino, fresh, era)
        return self._seen(attributes)

    def _find(self, parent: int, name: bytes, walker: int) -> Attributes | None:
        """Return what is known of a name, if it is right or a later call by it can still find out otherwise.

        None can of a file that is open here, as `verify_unopened` says, nor of a symbolic link: the kernel
        asks nothing more for O_NOFOLLOW.
        """
        known = self._names.find(parent, name)
        if known is None or self._names.is_certain_name(parent, name, known.ino):
            return known
        is_final = stat.S_ISLNK(known.mode) or self._has_handles(known.ino)
        return None if is_final or self._walks.is_misled(walker) else known

    def _has_handles(self, ino: int) -> bool:
        inode = self._opens.find(ino)
        return inode is not None and bool(inode.handles)

    def _ask_name(self, parent: int, name: bytes, walker: int = 0) -> Attributes:
        _check_name(name)
        if self._names.is_absent(parent, name):
            raise NotFound(os.fsdecode(name))
        token = self._names.asking()
        found = self._look_up(walker, parent, name)
        if found is not None and self._births.settle_in(found.ino):  # its times are others now
            token = self._names.asking()
            found = self._look_up(walker, parent, name)
        if found is None:
            self._names.learn_absent(token, parent, name)
            raise NotFound(os.fsdecode(name))
        self._names.learn_name(token, parent, name, found)
        return found

    def _look_up(self, walker: int, directory: int, name: bytes) -> Attributes | None:
        """Ask the server for a name, and for those by which `walker` came to its directory, if in doubt.

        Returns:
            Its inode's attributes; None if it is not there.

        Raises:
            StaleFile: those lead elsewhere by now; a new walk will find where.
            NotFound: they do, and the name is not there either. The kernel may make it then, and does not
                walk anew for StaleFile here, but for that of its next call (`_verify`).
        """
        walk = self._walks.doubtful(walker, directory, self._grant.era())
        if walk is None:
            with self._telling_removed(walker, directory):
                found = self._namespace.resolve(directory, [name])
            return found[0] if found else None
        try:
            found = self._namespace.resolve(walk.start, [*walk.names, name])
        except NotADirectory:  # but what may have been meant is behind a link that is there now
            self._verify(walker, directory)
            raise
        steps, rest = found[: len(walk.names)], found[len(walk.names) :]
        try:
            self._check(walker, walk, steps)
        except StaleFile:
            if not rest:
                raise NotFound(os.fsdecode(name)) from None
            raise
        return rest[0] if rest else None

    @contextmanager
    def _telling_removed(self, walker: int, *inodes: int) -> Iterator[None]:
        """Within, NotFound instead of StaleFile if all inodes were what `walker` was on the way to.

        One of them was removed since its name was followed, within the same system call: there is nothing to
        be found by walking anew, which the kernel does only once.
        """
        try:
            yield
        except StaleFile as error:
            era = self._grant.era()
            if all(ino == ROOT_INODE or self._walks.is_known(walker, ino, era) for ino in inodes):
                raise NotFound(error.message) from None
            raise

    def _verify(self, walker: int, *inodes: int) -> None:
        """Make sure that the names by which `walker` came to each inode lead there. Raises StaleFile."""
        for ino in inodes:
            if (walk := self._walks.doubtful(walker, ino, self._grant.era())) is not None:
                self._check(walker, walk, self._namespace.resolve(walk.start, walk.names))

    def _check(self, walker: int, walk: Walk, found: Sequence[Attributes]) -> None:
        """Hold a walk against what its names lead to now. Raises StaleFile: that is something else."""
        if [each.ino for each in found] != walk.inodes:
            self._forget_names(walk)
            raise StaleFile("another mount has changed what is on the way there")
        self._walks.confirm(walker, walk)

    def verify_unopened(self, ino: int, walker: int) -> None:
        """Make sure that an inode, which a call is about by name, is what the name is of. Raises StaleFile.

        Of one that is open here nothing is known: it may be meant by its descriptor. Its names are told as
        the server says them.
        """
        if not self._has_handles(ino):
            self._verify(walker, ino)

    def walk_anew(self, walker: int) -> None:
        """Note that `walker` was told StaleFile: for a moment its names are asked of the server.

        The kernel has it walk anew then, but only once.
        """
        self._walks.mislead(walker)

    def _forget_names(self, walk: Walk) -> None:
        parents = [walk.start, *walk.inodes[:-1]]
        self._names.changed(names=tuple(zip(parents, walk.names, strict=True)))

    def resolve(self, path: bytes, fresh: bool = False) -> Attributes:
        """Follow a path from the root, no symbolic links; with `fresh` ask the server for all of it."""
        names = [name for name in path.split(b"/") if name]
        for name in names:
            _check_name(name)
        self._births.settle()
        current, rest = ROOT_INODE, names
        attributes = None
        while rest and not fresh and (known := self._names.find(current, rest[0])) is not None:
            attributes, current, rest = known, known.ino, rest[1:]
        if not names:
            return self.getattr(ROOT_INODE)
        if rest:
            token = self._names.asking()
            found = self._namespace.resolve(current, rest)
            for name, attributes in zip(rest, found, strict=False):
                self._names.learn_name(token, current, name, attributes)
                current = attributes.ino
            if len(found) < len(rest):
                raise NotFound(os.fsdecode(path))
        assert attributes is not None, "a path with names was followed to its end"
        return self._seen(attributes)

    def open(self, ino: int, flags: int, walker: int = 0, uid: int = 0) -> tuple[Handle, bool]:
        """Open a file as Files.open; if `walker` came through the cache, only if its path leads there.

        `uid` is the user who opens it.

        Raises:
            StaleFile: it does not; a new walk will find what is there now.
        """
        handle, keep = self._open(ino, flags, walker)
        if flags & os.O_TRUNC:
            try:
                self.drop_set_id(handle, uid)
            except QuorumfsError as error:
                self._writeback.fail(handle.inode, error)
                self.files.release(handle)
                raise
        return handle, keep

    def drop_set_id(self, handle: Handle, uid: int) -> None:
        """Take the set-id bits off a file that a user other than root changes, as write(2) says.

        The kernel does so by itself, but for O_TRUNC and for writes past its pages (O_APPEND, O_DIRECT).
        """
        mode = handle.inode.base().mode
        if not uid or not mode & SET_ID:
            return
        kept = mode & ~(SET_ID if mode & stat.S_IXGRP else stat.S_ISUID)
        if kept != mode:
            self.setattr(handle.inode.ino, AttributeChanges(mode=stat.S_IMODE(kept)))

    def _open(self, ino: int, flags: int, walker: int) -> tuple[Handle, bool]:
        walk = self._walks.take(walker, ino)
        if walk is None or walk.is_right(self._grant.era()):
            return self.files.open(ino, flags)
        try:
            return self.files.open(ino, flags, walk)
        except StaleFile:
            self._forget_names(walk)
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
        _check_name(name)
        self._births.settle()
        self._verify(walker, parent)
        token = self._names.asking()
        with self._telling_removed(walker, parent):
            attributes = self._namespace.create(parent, name, mode, uid, gid, rdev, target, False)
        changed_ns = 0 if stat.S_ISDIR(mode) else attributes.ctime_ns
        self._names.made(token, parent, name, attributes, changed_ns, new=True)
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
        _check_name(name)
        self._verify(walker, parent)
        self._permission.require_writable()
        token = self._names.asking()
        if self._names.is_absent(parent, name) and (directory := self._names.attributes(parent)) is not None:
            self._permission.require_room()
            conceived = self._births.conceive(directory, name, mode, uid, gid)
            if conceived is not None:
                handle = self._adopt(token, conceived, flags, parent, name)
                self._births.expect(handle.inode, Birth(parent, name, conceived.mode, uid, gid))
                return conceived, handle
        try:
            with self._telling_removed(walker, parent):
                attributes = self._namespace.create(
                    parent, name, stat.S_IFREG | stat.S_IMODE(mode), uid, gid, 0, b"", True
                )
        except AlreadyExists:
            if flags & os.O_EXCL:
                raise
            self._names.changed(names=((parent, name),))
            attributes = self._ask_name(parent, name)
            if not stat.S_ISREG(attributes.mode) or uid not in (0, attributes.uid):
                raise StaleFile(os.fsdecode(name)) from None
            handle, _ = self.open(attributes.ino, flags, uid=uid)
            return self._seen(attributes), handle
        handle = self._adopt(token, attributes, flags, parent, name)
        self._names.entered(parent, attributes.ctime_ns)
        return attributes, handle

    def _adopt(self, token: Asked, attributes: Attributes, flags: int, parent: int, name: bytes) -> Handle:
        handle = self.files.adopt(attributes, flags)
        handle.inode.made_as = (parent, name)
        self._names.made(token, parent, name, attributes, 1, new=True)
        return handle

    def link(self, ino: int, parent: int, name: bytes, walker: int = 0) -> Attributes:
        """Give an inode one more name.

        Raises:
            NotFound: it has lost its last one, or the directory was removed.
            StaleFile: likewise, and what its name is of now was not looked for yet.
        """
        _check_name(name)
        self._births.settle()
        self._births.settle(ino)
        self._verify(walker, ino, parent)
        token = self._names.asking()
        try:
            attributes = self._namespace.link(ino, parent, name)
        except NotFound as error:
            if self._walks.is_known(walker, ino, self._grant.era()) and not self._walks.is_misled(walker):
                raise StaleFile(error.message) from None  # another file may have its name by now
            raise
        self._names.made(token, parent, name, attributes, attributes.ctime_ns)
        return self._seen(attributes)

    def unlink(self, parent: int, name: bytes, walker: int = 0) -> None:
        """Remove a name; an open inode lives until its last close."""
        self._remove(parent, name, walker, directory=False)

    def rmdir(self, parent: int, name: bytes, walker: int = 0) -> None:
        """Remove an empty directory."""
        self._remove(parent, name, walker, directory=True)

    def _remove(self, parent: int, name: bytes, walker: int, directory: bool) -> None:
        _check_name(name)
        self._settle_for(parent, name)
        self._verify(walker, parent)
        self._note_special(self._names.find(parent, name))
        with self._opens.removing():
            token = self._names.asking()
            try:
                with self._telling_removed(walker, parent):
                    after = (self._namespace.rmdir if directory else self._namespace.unlink)(parent, name)
            except BaseException:
                self._removals += 1
                self._names.changed(names=((parent, name),), inodes=(parent,))
                raise
            self._removals += 1
            self._names.removed(token, parent, name, after)
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
        _check_name(name)
        _check_name(new_name)
        self._settle_for(parent, name)
        self._verify(walker, parent, new_parent)
        self._note_special(self._names.find(new_parent, new_name))
        with self._opens.removing():
            try:
                with self._telling_removed(walker, parent, new_parent):
                    self._namespace.rename(parent, name, new_parent, new_name, flags)
            finally:
                self._removals += 1
                names = ((parent, name), (new_parent, new_name))
                self._names.changed(names=names, inodes=(parent, new_parent))
        self._walks.ended(walker)

    def read_link(self, ino: int, walker: int = 0) -> bytes:
        """Return a symbolic link's target."""
        self._verify(walker, ino)
        return self._namespace.read_link(ino)

    # attributes

    def getattr(self, ino: int) -> Attributes:
        """Return attributes as this mount's programs see them."""
        inode, removals = self._opens.get(ino), self._removals
        if inode is not None and inode.birth is not None:
            with inode.lock:
                return inode.view()
        if inode is not None and inode.is_changed() and inode.removals_seen == removals:
            with inode.lock:
                return inode.view()
        if inode is not None:
            inode.removals_seen = removals
        attributes = self._names.attributes(ino)
        if attributes is None:
            self._births.settle_in(ino)
            token = self._names.asking()
            try:
                attributes = self._namespace.getattr(ino)
            except StaleFile:
                if ino not in self._specials:
                    raise
                return self._specials[ino]._replace(nlink=0)
            self._names.learn(token, attributes)
        return self._seen(attributes)

    def _note_special(self, attributes: Attributes | None) -> None:
        """Keep what is to be told of what is open, or the working directory, once it is removed.

        The server knows which regular files are open, and nothing of others.
        """
        if attributes is not None and not stat.S_ISREG(attributes.mode):
            keep_newest(self._specials, attributes.ino, attributes, MOST_SPECIALS)

    def setattr(self, ino: int, changes: AttributeChanges) -> Attributes:
        """Change attributes (not the size: that is Files.truncate)."""
        self._births.settle(ino)
        inode = self._opens.get(ino)
        if inode is None or changes.mtime_ns is None:
            return self._seen(self._set(ino, changes))
        with inode.commit_lock:  # a commit that is under way brings the time of its last write
            attributes = self._set(ino, changes)
            with inode.lock:
                inode.set_mtime(changes.mtime_ns)
        return self._seen(attributes)

    def _set(self, ino: int, changes: AttributeChanges) -> Attributes:
        token = self._names.asking()
        try:
            attributes = self._namespace.setattr(ino, changes)
        except StaleFile:
            if (special := self._specials.get(ino)) is None:
                raise
            # It is open here, and has no name: nobody but who has it open can see what it is like.
            new = {name: value for name, value in changes._asdict().items() if value is not None}
            if changes.mode is not None:
                new["mode"] = stat.S_IFMT(special.mode) | changes.mode
            self._specials[ino] = special._replace(**new, ctime_ns=time.time_ns())
            return self._specials[ino]._replace(nlink=0)
        self._names.set(token, attributes)
        return attributes

    def _seen(self, attributes: Attributes) -> Attributes:
        """Return attributes with what this mount has not committed yet.

        An inode that is being opened learns them too: the kernel must not be told of newer contents than the
        reads of the open file will bring.
        """
        inode = self._opens.find(attributes.ino)
        if inode is None:
            return attributes
        with inode.lock:
            self._pages.changed(attributes.ino, inode.learn_attributes(attributes))
            return inode.view()

    # directories

    def open_directory(self, ino: int, walker: int = 0) -> DirectoryHandle:
        """Open a directory; as `open`, only if the path of `walker` leads there."""
        self._verify(walker, ino)
        self._note_special(self._names.attributes(ino))
        return DirectoryHandle(ino)

    def read_directory(
        self, handle: DirectoryHandle, restart: bool, count: int | None = None
    ) -> Sequence[Entry]:
        """Return the entries of a directory, without . and .., that were read of it since reading began.

        They are asked for as they are needed, in the order of names, so that what is learnt of each is fresh
        when it is used, however many there are. One that is there all the while is read once.

        Args:
            handle: of the directory.
            restart: read them anew, as after rewinddir(3).
            count: read so many at least, if there are; None: all.
        """
        if handle.began is None or restart:
            self._births.settle()
            handle.begin(self._names.asking())
        while not handle.is_complete and (count is None or len(handle.entries) < count):
            self._read_on(handle)
        return handle.entries

    def _read_on(self, handle: DirectoryHandle) -> None:
        asked = self._names.asking()
        ino, last = handle.ino, handle.entries[-1].name if handle.entries else b""
        try:
            page = self._namespace.read_directory(ino, last, DIRECTORY_RUN)
        except StaleFile:  # it was removed since it was opened, and was empty then
            handle.is_complete = True
            return
        for entry in page.entries:
            self._names.learn_name(asked, ino, entry.name, entry.attributes)
            if entry.attributes.ino not in page.secured:
                self._names.learn_plain(asked, entry.attributes.ino, all_of_them=True)
        handle.entries += page.entries
        handle.is_complete = page.complete or not page.entries
        if page.complete and handle.began is not None:
            self._names.learn_whole(handle.began, ino)
        if handle.is_complete:
            self._ahead.listed(ino, handle.entries)

    def sync_directory(self) -> None:
        """Make every change of names so far survive a power loss."""
        self._births.settle(*self._births.waiting())
        self._namespace.sync_metadata()

    def _forget(self) -> None:
        """Forget all that is cached."""
        self._reader.forget()
        self._ahead.forget()
        self._pages.doubt_all()
        self._names.forget()

    def usage(self) -> Usage:
        """Return the room in the file system."""
        return self._namespace.usage()


def _check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES:
        raise NameTooLong(f"a name of {len(name)} bytes: at most {NAME_BYTES}")
