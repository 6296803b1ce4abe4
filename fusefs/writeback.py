"""From dirty bytes to a commit: which blocks are put when, what a commit holds, and what a failure undoes.

Full buffers are put in the background; nothing is visible before the commit at fsync, close or age. When
a put or a commit fails, all that the inode has uncommitted is dropped, so that the old content stands
whole, and each handle that was writing is told. See docs/decisions/0005-what-a-close-commits.md.
Safe in any thread; an inode's lock is never held while a server is called.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

from fusefs.births import times_of
from fusefs.budget import Budget
from fusefs.cache import NameCache
from fusefs.changes import ChangeSet, PendingBlock, Unfinished
from fusefs.commits import divide, record_of
from fusefs.handles import Handle
from fusefs.inodes import Inode
from fusefs.pages import PageLedger
from fusefs.patience import LOOK_SECONDS, MOST_WAITING, Patience
from fusefs.ports import BlockPort, NamespacePort
from wire.digest import BLOCK_BYTES, block_digest
from wire.errors import Interrupted, LocksLost, NoSpace, QuorumError, QuorumfsError, SessionUnknown, StaleFile
from wire.messages import AttributeChanges, Attributes, Birth, BlockRecord

log = logging.getLogger(__name__)

UPLOADS = 4
"""So many blocks are put at the same time."""
MAP_RUN_EXTENTS = 4096
MOST_PENDING_EXTENTS = 50_000
"""A file that gathers more is committed early."""
MOST_UNUSED_UPLOADS = 64
"""A file that is overwritten again and again keeps room for so many blocks more than twice what it needs."""
INLINE_BYTES = BLOCK_BYTES
"""So many bytes of a commit's last blocks ride on the commit's own call."""


class Writeback:
    """Takes the changes of inodes to the servers.

    Args:
        namespace: asked only whether a commit was carried out whose answer was lost with its session.
        blocks: where blocks and commits go.
        limit_bytes: the most dirty bytes kept in memory; a writer waits beyond.
        age_seconds: dirty data older than this is written out.
        patience: how its threads wait for servers that are away.
        wait_seconds: how long a writer waits for room at most (then memory grows instead), if none are away.
    """

    def __init__(
        self,
        namespace: NamespacePort,
        blocks: BlockPort,
        cache: NameCache,
        pages: PageLedger,
        limit_bytes: int,
        age_seconds: float,
        patience: Patience,
        wait_seconds: float = 30.0,
    ) -> None:
        self._namespace, self._blocks, self._cache, self._pages = namespace, blocks, cache, pages
        self._age_seconds, self._wait_seconds = age_seconds, wait_seconds
        self._patience = patience
        self._pool = ThreadPoolExecutor(UPLOADS, "upload")
        self._commits = ThreadPoolExecutor(MOST_WAITING, "commit")
        """Commits of requests that may be interrupted: a commit goes on then, and is not half done."""
        self.budget = Budget(limit_bytes)

    def close(self) -> None:
        """Wait for the commits and uploads in flight."""
        self._commits.shutdown(wait=True)
        self._pool.shutdown(wait=True)

    # writing

    def write(
        self,
        handle: Handle,
        offset: int | None,
        data: memoryview,
        unfinished: Unfinished | None = None,
        *,
        past_pages: bool = False,
    ) -> None:
        """Note a write (offset None: at the end of the file); put what became full.

        `unfinished`: more of the same write(2) may follow. Both parts go into one commit then, so that no
        other mount's bytes come between them. `past_pages`: the kernel has not put the bytes in its pages.

        Raises:
            LocksLost: this mount's locks are gone: somebody else may have them.
            QuorumfsError: another write of the file failed meanwhile.
        """
        inode = handle.inode
        with self.in_place(inode, None if offset is None else offset + len(data)):
            handle.require_changeable()
            inode.note_part(unfinished)
            added = inode.append(data) if offset is None else inode.write(offset, data)
            (self._pages.bypassed if past_pages else self._pages.filled)(inode.ino)
            self.budget.take(added)
            self._start_uploads(inode, inode.seal_full())
            crowded = len(inode.changes.map) > MOST_PENDING_EXTENTS
            wasteful = len(inode.uploads) > 2 * inode.used_uploads + MOST_UNUSED_UPLOADS
        if wasteful:
            self._abandon_unused(inode)
        if crowded and not inode.hides_old_content():
            self.commit(inode, durable=False, spares_rewrites=True)
        if self.budget.is_exceeded():
            self.write_out(inode)
            self._wait_for_room()

    @contextmanager
    def in_place(self, inode: Inode, end: int | None) -> Iterator[None]:
        """Hold an inode's lock for a change at its place, up to `end`; None: at the end of the file.

        What was appended before is committed first, if the change reaches so far: it goes to where other
        mounts leave the end of the file, and would take the change along, or lose its right to go there. So
        are holes past the end that is known here, before anything is appended.
        """
        while True:
            with inode.lock:
                inode.note_part(None)  # the kernel lets no two changes of a file overlap: appends are whole
                if not inode.may_move(end):
                    yield
                    return
            self.commit(inode, durable=False, spares_rewrites=True)

    def _wait_for_room(self) -> None:
        self._patience.duty.pass_on()
        until = time.monotonic() + self._wait_seconds
        while not self.budget.wait_for_room(LOOK_SECONDS):
            try:
                self._patience.look()
            except Interrupted:
                return  # the bytes are taken: the write has succeeded
            if not self._patience.waits and time.monotonic() > until:
                return

    def truncate(self, inode: Inode, size: int, *, cut: bool = False) -> None:
        """Note a new size; `cut`: the file is longer than is known here."""
        with inode.lock:
            dropped = inode.truncate(size, cut=cut)
        self.budget.give_back(dropped)

    def punch(self, inode: Inode, start: int, end: int) -> None:
        """Note a hole."""
        with inode.lock:
            dropped = inode.punch(start, end)
        self.budget.give_back(dropped)

    def write_out(self, inode: Inode) -> None:
        """Put all dirty bytes of an inode in the background; commit nothing."""
        with inode.lock:
            self._start_uploads(inode, inode.seal_all())

    def write_out_old(self, inodes: Iterable[Inode]) -> None:
        """Write out what is older than the age; commit it too, unless it rewrites a file from nothing."""
        crowded = self.budget.used > self.budget.limit_bytes // 2
        for inode in inodes:
            since = inode.dirty_since
            if since is None or not (crowded or time.monotonic() - since > self._age_seconds):
                continue
            if crowded or inode.hides_old_content():
                self.write_out(inode)
                continue
            try:
                self.commit(inode, durable=False, spares_rewrites=True)
            except QuorumfsError as error:
                log.warning("inode %d: old changes were dropped: %s", inode.ino, error)

    def fail(
        self,
        inode: Inode,
        error: QuorumfsError,
        *,
        block: PendingBlock | None = None,
        change: ChangeSet | None = None,
        locks: bool = False,
    ) -> None:
        """Drop the changes that wait, and let each writing handle be told why.

        Args:
            inode: whose.
            error: why.
            block: only if the changes that wait refer to this block, which could not be put.
            change: the change whose commit failed; it is dropped too.
            locks: locks are gone, under which any of it may have been written; writers are told anyway.
        """
        with inode.lock:
            blocks = _blocks_of(inode.changes)
            if block is not None and block not in blocks:
                return  # a commit under way waits for this block and will find out
            if locks:
                inode.lose(error)
            if change is None and inode.changes.is_empty():
                return
            if change is not None:
                inode.end_commit()
                blocks += _blocks_of(change)
            self.budget.give_back(inode.drop_changes())
            inode.last_error = error
            for handle in inode.handles:
                if handle.writing:
                    handle.error = error
        self._pages.doubt(inode.ino)
        self._pages.attributes_changed(inode.ino)
        for dropped in blocks:
            if dropped.upload is None or dropped.upload.cancel():
                self._let_go(dropped)
        self._abandon_unused(inode)

    # uploading

    def _start_uploads(self, inode: Inode, blocks: Iterable[PendingBlock]) -> None:
        """Put blocks in the background. With the inode's lock held: a commit must not take them too."""
        for block in blocks:
            inode.uploads.append(block)
            block.upload = self._pool.submit(self._upload, inode, block)
            block.upload.add_done_callback(partial(self._upload_ended, inode))

    def _upload(self, inode: Inode, block: PendingBlock) -> None:
        data = block.data
        assert data is not None, "a block is uploaded once, and keeps its bytes until then"
        try:
            record = BlockRecord(self._blocks.new_block(), block.length, block_digest(data))
            block.tried = record
            self._blocks.put_block(record.block, record.digest, data, False)
            block.record = record
        except QuorumfsError as error:
            self.fail(inode, error, block=block)
            raise
        finally:
            self._let_go(block)

    def _upload_ended(self, inode: Inode, upload: Future[None]) -> None:
        """Look at what a failure dropped while its uploads were under way."""
        if inode.last_error is not None:
            self._abandon_unused(inode)

    def _abandon_unused(self, inode: Inode) -> None:
        """Let the servers delete what was sent and no commit will ever name. It is tried once.

        What it misses is deleted when the session ends.
        """
        with inode.lock:
            used = {*_blocks_of(inode.changes), *_blocks_of(inode.committing)}
            ended = [b for b in inode.uploads if b not in used and (b.upload is None or b.upload.done())]
            gone = set(ended)
            inode.uploads = [block for block in inode.uploads if block not in gone]
            inode.used_uploads = len(inode.uploads)
        if records := [block.tried for block in ended if block.tried is not None]:
            with suppress(RuntimeError):  # the mount is ending, and its session with it
                self._pool.submit(self._abandon, records)

    def _abandon(self, records: list[BlockRecord]) -> None:
        try:
            self._blocks.abandon(records)
        except QuorumfsError as error:
            log.info("%d blocks that no file has stay until the mount ends: %s", len(records), error)

    def _let_go(self, block: PendingBlock) -> None:
        block.data = None
        self.budget.give_back(block.length)

    # committing

    def commit(
        self, inode: Inode, durable: bool, thread: int | None = None, *, spares_rewrites: bool = False
    ) -> bool:
        """Make all changes of an inode visible in one commit; with `durable` also safe from power loss.

        `thread` is known not to be within a write(2). With `spares_rewrites` nothing is done if the file is
        being rewritten by then, which nobody must see by halves. Returns whether anything was committed.

        Raises:
            Interrupted: of the request that this thread answers; the commit goes on without it.
            QuorumfsError: nothing was committed; the changes are dropped.
        """
        if self._patience.waits and self._patience.is_asked():
            work = self._commits.submit(self._commit, inode, durable, thread, spares_rewrites)
            return self._patience.result_of(work)
        return self._commit(inode, durable, thread, spares_rewrites)

    def _commit(self, inode: Inode, durable: bool, thread: int | None, spares_rewrites: bool) -> bool:
        with inode.commit_lock:
            with inode.lock:
                inode.await_whole_writes(thread)
                if not inode.is_changed() and inode.birth is None:
                    return False
                if spares_rewrites and inode.hides_old_content():
                    return False  # the file was cut while this waited for another commit
                change = inode.begin_commit()
            asked = self._cache.asking()
            try:
                attributes = self._carry_out(inode, change, durable)
            except Exception as error:
                told = error if isinstance(error, QuorumfsError) else QuorumfsError(f"a defect: {error!r}")
                if change.sent and not _is_final(told):
                    _keep(inode, _blocks_of(change))
                    inode.birth = None  # it may have been made; if not, no other commit shall make it
                self.fail(inode, told, change=change)
                raise
            birth = inode.birth
            with inode.lock:
                inode.birth = None
                learnt = inode.finish_commit(change, attributes, durable)
                self._pages.changed(inode.ino, learnt)
                _keep(inode, _blocks_of(change))
        if inode.uploads:
            self._abandon_unused(inode)
        if not learnt:
            self._pages.committed(inode.ino, attributes.version)
        self._cache.set(asked, attributes)
        if birth is not None:
            self._cache.entered(birth.parent, attributes.ctime_ns)
        self._pages.attributes_changed(*_told_to_kernel(inode.ino, change, birth))
        return True

    def _carry_out(self, inode: Inode, change: ChangeSet, durable: bool) -> Attributes:
        blocks = _blocks_of(change)
        inline = _choose_inline([block for block in blocks if block.upload is None])
        riding = set(inline)
        put = [block for block in blocks if block not in riding]
        with inode.lock:
            self._start_uploads(inode, [block for block in put if block.upload is None])
            inode.uploads += inline
        for block in put:
            self._patience.duty.pass_on()
            _await_upload(block)
        if not all(self._blocks.owns(record_of(block).block) for block in put):
            raise SessionUnknown("blocks were put under a session that has expired meanwhile")
        if durable and put:
            self._blocks.sync_blocks([record_of(block).block for block in put])
        try:
            attributes = self._send(inode, change, put, inline, durable)
        except SessionUnknown as error:
            if put:
                raise
            # Done twice, an append is there twice, and any write may undo what others wrote meanwhile.
            may_matter = change.append_from is not None or error.resent
            done = self._outcome_of(inode, inline, error) if may_matter else None
            attributes = done or self._send(inode, change, put, inline, durable)
        for block in inline:
            self._let_go(block)
        return attributes

    def _outcome_of(
        self, inode: Inode, blocks: list[PendingBlock], error: SessionUnknown
    ) -> Attributes | None:
        """Return a file's attributes if a commit of these blocks was carried out; None if it was not.

        Raises the error if nobody can tell, as others have changed the file.
        """
        try:
            was_carried_out = self._has_any(inode.ino, blocks)
            attributes = self._namespace.getattr(inode.ino)
        except StaleFile:
            if inode.birth is None:
                raise
            return None  # there is no such file yet
        if was_carried_out:
            return attributes
        if error.resent and attributes.version != inode.base().version:
            raise error
        return None

    def _has_any(self, ino: int, blocks: list[PendingBlock]) -> bool:
        """Tell whether a file's committed contents refer to any of these blocks."""
        ids = {record_of(block).block for block in blocks}
        offset = 0
        while True:
            run = self._namespace.file_map(ino, offset, MAP_RUN_EXTENTS)
            if any(extent.block in ids for extent in run.extents):
                return True
            if run.complete or not run.extents:
                return False
            offset = run.extents[-1].offset + run.extents[-1].length

    def _send(
        self,
        inode: Inode,
        change: ChangeSet,
        put: list[PendingBlock],
        inline: list[PendingBlock],
        durable: bool,
    ) -> Attributes:
        """Commit a change, in steps if it is a very large one; return the attributes after it."""
        payloads: dict[bytes, bytearray] = {}
        for block in inline:
            assert block.data is not None, "an inline block keeps its bytes until it is committed"
            block.record = BlockRecord(self._blocks.new_block(), block.length, block_digest(block.data))
            block.tried = block.record
            payloads[block.record.block] = block.data
        if inode.losses != change.losses or (inode.losses and inode.birth is not None):
            raise LocksLost("what was written under locks that are gone is not committed")
        records = [record_of(block) for block in (*put, *inline)]
        birth = inode.birth
        times = AttributeChanges() if birth is None else times_of(inode)
        if change.mtime_ns is not None:
            times = times._replace(mtime_ns=change.mtime_ns)
        commits = divide(change, records, times, durable)
        change.sent = True
        for commit in commits:
            payload = [payloads[record.block] for record in commit.blocks if record.block in payloads]
            attributes = self._blocks.write_file(inode.ino, commit, payload, birth)
            birth = None
        return attributes


def _told_to_kernel(ino: int, change: ChangeSet, birth: Birth | None) -> tuple[int, ...]:
    """Return the inodes whose attributes a commit changed, and the kernel may know otherwise.

    Of a new file it was told once, at the creation; it forgets that by itself with each request to change it.
    """
    if birth is None:
        return (ino,)
    return (ino, birth.parent) if change.is_empty() else (birth.parent,)


def _is_final(error: QuorumfsError) -> bool:
    """Tell whether a commit that failed so is not under way still.

    One that is could come after its blocks were deleted and forgotten: the file would have lost them.
    """
    return isinstance(error, QuorumError | StaleFile | NoSpace) and not error.resent


def _keep(inode: Inode, blocks: Iterable[PendingBlock]) -> None:
    """Do not abandon blocks that are committed, or may yet be."""
    with inode.lock:
        kept = set(blocks) if inode.uploads else set()
        inode.uploads = [block for block in inode.uploads if block not in kept]
        inode.used_uploads = 0


def _blocks_of(change: ChangeSet | None) -> list[PendingBlock]:
    """Return the blocks that a change refers to, each once, in order."""
    if change is None:
        return []
    return list(dict.fromkeys(source for _, _, source, _ in change.map if source is not None))


def _choose_inline(blocks: list[PendingBlock]) -> list[PendingBlock]:
    """Return the last blocks that together fit on the commit's own call."""
    room = INLINE_BYTES
    chosen: list[PendingBlock] = []
    for block in reversed(blocks):
        if block.length > room:
            break
        room -= block.length
        chosen.append(block)
    return chosen[::-1]


def _await_upload(block: PendingBlock) -> None:
    assert block.upload is not None
    try:
        block.upload.result()
    except CancelledError:
        raise QuorumfsError("another block of the same file could not be written") from None
