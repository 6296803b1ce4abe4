"""Open files by inode and handle, as POSIX has them: open, read, write, truncate, flush, fsync, close.

Knows neither errno nor the binding; raises errors of wire.errors. Safe in any thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fusefs.ahead import FilesAhead, Ready, only_block
from fusefs.births import Births
from fusefs.cache import NameCache
from fusefs.changes import Unfinished
from fusefs.contents import MAP_ATTEMPTS, Contents
from fusefs.extents import END_OF_FILE
from fusefs.handles import Handle, OpenInodes
from fusefs.inodes import Inode, compare_sizes
from fusefs.locks import FileLocks
from fusefs.pages import PageLedger
from fusefs.ports import BlockPort, NamespacePort, WritePermission
from fusefs.readahead import BlockReader
from fusefs.walks import Walk
from fusefs.writeback import Writeback
from wire.digest import BLOCK_BYTES
from wire.errors import (
    FileTooLarge,
    InvalidArgument,
    NoSpace,
    NotSupported,
    QuorumError,
    QuorumfsError,
    WriteRefused,
)
from wire.messages import Attributes, Opened

log = logging.getLogger(__name__)

SYNC_RUN_BLOCKS = 4096
UNFINISHED_SECONDS = 2.0
"""A commit waits so long at most for the rest of a write that the kernel has sent in parts."""
PAGE_BYTES = 4096
FALLOCATE_KEEP_SIZE = 0x01
FALLOCATE_PUNCH_HOLE = 0x02
FALLOCATE_ZERO_RANGE = 0x10


class Files:
    """The open files of a mount."""

    def __init__(
        self,
        namespace: NamespacePort,
        blocks: BlockPort,
        permission: WritePermission,
        cache: NameCache,
        pages: PageLedger,
        opens: OpenInodes,
        writeback: Writeback,
        reader: BlockReader,
        contents: Contents,
        ahead: FilesAhead,
        locks: FileLocks,
        births: Births,
    ) -> None:
        self._namespace, self._blocks, self._permission = namespace, blocks, permission
        self._cache, self._pages, self._opens = cache, pages, opens
        self._writeback, self._reader, self._locks = writeback, reader, locks
        self._contents = contents
        self._ahead = ahead
        self._births = births
        self._reads_follow = False
        """Whether opens are followed by reads now, or by none, because the kernel has the pages."""

    # opening and closing

    def open(self, ino: int, flags: int, walk: Walk | None = None) -> tuple[Handle, bool]:
        """Open a file as open(2) does; return its handle, and whether the kernel may keep its cached pages.

        O_TRUNC is only noted: the old content stands until the commit. Whether it may be written is asked of
        the server, which remembers for `explain` what it refuses.

        Raises:
            WriteRefused: it is to be written, and fewer than Qw data servers are up.
            StaleFile: it does not exist any more, or the walk does not lead to it any more.
        """
        self._births.settle(ino)
        writing = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        token = self._cache.asking()
        is_coming = not writing and self._ahead.opened(ino, fetch=self._reads_follow)
        brings = self._reads_follow and not writing and not is_coming
        before = self._cache.attributes(ino) if self._opens.get(ino) is None else None
        ready = self._ahead.take(ino) if is_coming else None
        known = self._open_known(ready) if ready is not None and walk is None else None
        inode, opened = known or self._opens.open(ino, writing, walk, self._pages.changed, brings)
        if before is not None and before.version < opened.attributes.version:
            self._pages.changed(ino, compare_sizes(before.size, opened.attributes.size))
        handle = self._attach(inode, flags)
        handle.unsettled = self._pages.is_unsettled(ino)
        handle.brought = self._offer(opened, ready)
        if flags & os.O_TRUNC:
            self._writeback.truncate(inode, 0)
        attributes = inode.base()
        self._cache.learn(ready.asked if known and ready else token, attributes)
        keep = self._pages.opened(ino, attributes.version)
        if not keep:
            handle.drops = attributes.version
        return handle, keep

    def _open_known(self, ready: Ready) -> tuple[Inode, Opened] | None:
        """Open a file that was fetched ahead without a call, if it is certainly as it was then."""
        ino = ready.file.attributes.ino
        inode = self._opens.open_known(ready.file, lambda: self._cache.is_unchanged(ready.asked, ino))
        return None if inode is None else (inode, ready.file)

    def _offer(self, opened: Opened, ready: Ready | None) -> bool:
        """Hand on the bytes that came with an open, or ahead of it, if they are of the block it has now."""
        record = only_block(opened.map)
        if record is None:
            return False
        part = ready.part if ready is not None and ready.record == record else opened.part
        if part is not None:
            self._reader.offer(record, part)
        return part is not None

    def adopt(self, attributes: Attributes, flags: int) -> Handle:
        """Return a handle of a file that was just created open."""
        inode = self._opens.adopt(attributes)
        self._pages.created(attributes.ino)
        if not self._pages.opened(attributes.ino, attributes.version):
            self._pages.dropped(attributes.ino, attributes.version)
        return self._attach(inode, flags)

    def _note_request(self, handle: Handle) -> None:
        """Note a request by what was opened: the kernel has taken in the answer to the open."""
        if handle.drops is not None:
            self._pages.dropped(handle.inode.ino, handle.drops)
            handle.drops = None

    def _attach(self, inode: Inode, flags: int) -> Handle:
        handle = Handle(inode, flags)
        with inode.lock:
            inode.handles.add(handle)
        return handle

    def flush(self, handle: Handle, thread: int | None = None) -> None:
        """Commit what was written, as close(2) promises (P3); report a failed write-back.

        It is one descriptor of several that may be closed, by a child process that never looks at the
        outcome: the error stays for the others, and what is refused beforehand goes on waiting, as
        `_refusing` says. `thread` is the one that asks: it is not within a write(2).

        Raises:
            WriteRefused: fewer than Qw data servers are up.
            QuorumfsError: what was written since the last commit was dropped; the old content stands.
        """
        if not handle.may_commit:
            return
        if handle.inode.is_changed() and not _is_from_nothing(handle.inode):
            self._permission.require_writable()
        self._commit(handle, durable=False, thread=thread)

    def fsync(self, handle: Handle) -> None:
        """Commit what was written, and return when the whole file would survive a power loss."""
        # The kernel lets no write(2) and no fsync(2) of one file overlap: what is here of the file is whole.
        with handle.inode.lock:
            handle.inode.note_part(None)
        try:
            committed = self._commit(handle, durable=True)
        except QuorumfsError as error:
            if handle.error is error:  # else it is still to be told, as after an interruption
                handle.error = None
            raise
        if not self._make_durable(handle.inode) and not committed:
            self._namespace.sync_metadata()  # its name, its mode and so on may still be in the log only

    def _commit(self, handle: Handle, durable: bool, thread: int | None = None) -> bool:
        handle.require_changeable()
        committed = self._writeback.commit(handle.inode, durable, thread)
        if handle.error is not None:
            raise handle.error
        return committed

    def _make_durable(self, inode: Inode) -> bool:
        """Make durable what earlier commits left to the servers' page caches; return whether any did."""
        for attempt in range(MAP_ATTEMPTS):
            version = inode.base().version
            if inode.durable_version == version:
                return False
            try:
                self._sync_blocks(inode)
                break
            except QuorumError:
                # Blocks that were replaced, by another mount or by compaction, are not there any more.
                if attempt == MAP_ATTEMPTS - 1 or not self._contents.is_superseded(inode, version, 0):
                    raise
        self._namespace.sync_metadata()
        with inode.lock:
            inode.durable_version = version
        return True

    def _sync_blocks(self, inode: Inode) -> None:
        blocks = list(dict.fromkeys(span.source.block for span in self._contents.whole_map(inode)))
        for start in range(0, len(blocks), SYNC_RUN_BLOCKS):
            self._blocks.sync_blocks(blocks[start : start + SYNC_RUN_BLOCKS])

    def release(self, handle: Handle) -> None:
        """Give up a handle; what came after the last flush (from a memory map) is committed now."""
        inode = handle.inode
        self._note_request(handle)
        with inode.lock:
            inode.handles.discard(handle)
            last_writer = handle.writing and not inode.has_writer()
            if last_writer:
                inode.note_part(None)
        try:
            is_untried = inode.birth is not None and inode.last_error is None
            if is_untried or (last_writer and inode.is_changed()):
                self._writeback.commit(inode, durable=False)
        except QuorumfsError as error:
            log.warning("inode %d: what was written after the last close was dropped: %s", inode.ino, error)
        finally:
            made_as = self._given_up(inode)
            self._locks.released(handle)
            self._opens.release(inode)
            if made_as is not None:
                self._remove_empty(inode.ino, made_as)
            if handle.brought and handle.read_from < 0:
                self._reads_follow = False

    def _given_up(self, inode: Inode) -> tuple[int, bytes] | None:
        """Give a new file up whose every write has failed. Not before: a program may try again.

        Returns:
            The directory and the name that it has at the server nevertheless, if it may have one.
        """
        try:
            if inode.birth is not None and not inode.handles and self._births.give_up(inode):
                assert inode.made_as is not None, "it was created here"
                self._cache.changed(names=(inode.made_as,), inodes=(inode.made_as[0],))
                return None
        except QuorumfsError as error:
            log.warning("inode %d stays as an empty file: %s", inode.ino, error)
            return None
        with inode.lock:
            made_as, attributes = inode.made_as, inode.attributes
            failed = inode.last_error is not None and not inode.handles
        if attributes is None or not failed or attributes.size or attributes.version > 1:
            return None
        return made_as

    def _remove_empty(self, ino: int, made_as: tuple[int, bytes]) -> None:
        """Remove a file that was given up, unless it is open again: what is written then must have its name.

        Who opens it meanwhile waits, and finds that there is none.
        """
        try:
            with self._opens.closed(ino) as is_closed:
                if not is_closed:
                    return
                try:
                    with self._opens.removing():
                        self._namespace.take_back(*made_as, ino)
                finally:
                    self._cache.changed(names=(made_as,), inodes=(made_as[0],))
        except QuorumfsError as error:
            log.warning("inode %d stays as an empty file: %s", ino, error)

    # reading

    def read(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        """Return bytes [offset, offset+size) as far as the file reaches.

        Raises:
            ReadRefused: the replicas of a block could not vouch for it.
            LocksLost: the handle had locks, and they are gone.
        """
        self._note_request(handle)
        self._locks.confirm(handle)
        self._reads_follow = True
        found = self._contents.read(handle, offset, size)
        handle.require_locks()  # else what was written under them may be missing in this
        return found

    def reaches_no_further(self, ino: int, size: int) -> bool:
        """Tell whether a file is known to be no longer than `size`: only if it is open here."""
        inode = self._opens.get(ino)
        if inode is None:
            return False
        with inode.lock:
            return inode.size() <= size

    def is_shortened(self, handle: Handle) -> bool:
        """Tell whether the file became shorter elsewhere so lately that the kernel may not know it."""
        return self._pages.is_shortened(handle.inode.ino)

    # writing

    def write(
        self,
        handle: Handle,
        offset: int,
        data: memoryview,
        thread: int = 0,
        *,
        direct: bool = False,
        appending: bool | None = None,
    ) -> None:
        """Note a write of a thread; an `appending` one is at the end of the file whatever `offset` says.

        None: it is if the file was opened so (O_APPEND), which fcntl(2) may have changed since. A `direct`
        one (O_DIRECT) has passed the kernel's pages by, as those of an uncached handle have.

        Raises:
            WriteRefused: fewer than Qw data servers are up.
            NoSpace: too few of them have room.
            QuorumfsError: an earlier write of this file failed, which fsync has not reported yet.
            LocksLost: the handle or, since it was opened, this mount had locks, and they are gone.
            FileTooLarge.
        """
        self._note_request(handle)
        self._locks.confirm(handle)
        handle.require_changeable()
        if offset + len(data) > END_OF_FILE:
            raise FileTooLarge("a file has at most 2**63 - 1 bytes")
        with self._refusing(handle):
            self._permission.require_writable()
            self._permission.require_room()
        if appending is None:
            appending = handle.appending
        unfinished = None
        if appending and _may_continue(handle, offset, len(data)):
            unfinished = Unfinished(thread, time.monotonic() + UNFINISHED_SECONDS)
        past_pages = handle.uncached or direct
        if appending and not past_pages and offset != handle.inode.size():
            self._pages.doubt(handle.inode.ino)  # where the kernel has the bytes they are not
        place = None if appending else offset
        self._writeback.write(handle, place, data, unfinished, past_pages=past_pages)

    @contextmanager
    def _refusing(self, handle: Handle) -> Iterator[None]:
        """Within, a change may be refused beforehand: the bytes of an earlier one that wait go on waiting.

        Not so in a file that is being written from nothing: it is all of its changes or none, until fsync
        has told.
        """
        try:
            yield
        except (WriteRefused, NoSpace) as error:
            inode = handle.inode
            inode.last_error = error
            if _is_from_nothing(inode):
                self._writeback.fail(inode, error)
                handle.error = error
            raise

    def truncate(self, handle: Handle, size: int) -> None:
        """Note a new size, as ftruncate(2)."""
        self._locks.confirm(handle)
        handle.require_changeable()
        with self._refusing(handle):
            self._permission.require_writable()
        is_longer = self._is_longer(handle.inode, size)
        with self._writeback.in_place(handle.inode, size):
            handle.require_changeable()
            self._writeback.truncate(handle.inode, size, cut=is_longer)

    def _is_longer(self, inode: Inode, size: int) -> bool:
        """Tell whether another mount has made a file longer than `size`, which is no less than known here."""
        if not size or size < inode.size():  # it is cut off anyway
            return False
        return self._committed_size(inode) > size

    def _committed_size(self, inode: Inode) -> int:
        """Return how long another mount may have made a file; 0 if that is known here.

        Nothing is learnt by that: the kernel lets no page of the file be dropped before it has its answer.
        """
        if inode.birth is not None or self._cache.is_certain(inode.base()):
            return 0
        return self._namespace.getattr(inode.ino).size

    def truncate_unopened(self, ino: int, size: int) -> Attributes:
        """Change the size of a file by name, as truncate(2): committed at once, as by a close."""
        handle, _ = self.open(ino, os.O_WRONLY)
        handle.drops = None  # of this open the kernel knows nothing
        try:
            self._permission.require_writable()  # not once it is noted: it would go with another's commit
            with self._writeback.in_place(handle.inode, size):
                self._writeback.truncate(handle.inode, size)
            self._commit(handle, durable=False)
            with handle.inode.lock:
                return handle.inode.view()
        finally:
            self.release(handle)

    def allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does, but that room is not reserved.

        Raises:
            NotSupported: a mode other than 0, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE.
            InvalidArgument, FileTooLarge.
            NoSpace: so much beyond the file's end cannot fit, now.
        """
        if offset < 0 or length <= 0:
            raise InvalidArgument("fallocate needs an offset of at least 0 and a length of at least 1")
        if offset + length > END_OF_FILE:
            raise FileTooLarge("a file has at most 2**63 - 1 bytes")
        keep_size = bool(mode & FALLOCATE_KEEP_SIZE)
        action = mode & ~FALLOCATE_KEEP_SIZE
        if action not in (0, FALLOCATE_ZERO_RANGE) and (action, keep_size) != (FALLOCATE_PUNCH_HOLE, True):
            raise NotSupported(f"fallocate with mode {mode:#x}")
        self._locks.confirm(handle)
        handle.require_changeable()
        with self._refusing(handle):
            self._permission.require_writable()
        inode = handle.inode
        end = offset + length
        if action != FALLOCATE_PUNCH_HOLE:
            self._require_room(end - max(offset, inode.size()))
        committed = self._committed_size(inode) if action and end > inode.size() else 0
        with self._writeback.in_place(inode, end):
            handle.require_changeable()
            size = inode.size() if inode.changes.cut is not None else max(inode.size(), committed)
            if action and offset < size:
                self._writeback.punch(inode, offset, min(end, size))
            inode.extend(0 if keep_size else end)

    def _require_room(self, length: int) -> None:
        """Raise NoSpace for more bytes than there is room for; a few are not worth asking."""
        if length <= BLOCK_BYTES:
            return
        if length > (free_bytes := self._namespace.usage().free_bytes):
            raise NoSpace(f"{length} bytes are more than the {free_bytes} that are free")

    def seek(self, handle: Handle, offset: int, whence: int) -> int | None:
        """Return the next data (SEEK_DATA) or hole (SEEK_HOLE) as lseek(2), None if there is none."""
        return self._contents.seek(handle.inode, offset, whence)

    def commit_all(self) -> None:
        """Commit whatever is not committed, at the end of the mount; failures are logged."""
        for inode in self._opens.all():
            try:
                self._writeback.commit(inode, durable=False)
            except QuorumfsError as error:
                log.warning("inode %d: uncommitted changes are lost: %s", inode.ino, error)


def _is_from_nothing(inode: Inode) -> bool:
    """Tell whether a file is being made from nothing (new, O_TRUNC): all of its writes count, or none."""
    with inode.lock:
        return inode.hides_old_content() or not inode.base().size


def _may_continue(handle: Handle, offset: int, length: int) -> bool:
    """Tell whether more of the same write(2) may follow these bytes.

    Through its page cache the kernel sends a write in parts that end with a page; past it, in parts as
    long as a request can be.
    """
    if handle.uncached:
        return length > BLOCK_BYTES - PAGE_BYTES
    return (offset + length) % PAGE_BYTES == 0
