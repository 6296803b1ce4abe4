"""The state that all handles of one inode share within the mount: committed map, changes, dirty bytes.

A file's bytes are looked up from the top: dirty buffers, changes that wait, changes being committed,
committed extents. While changes are being committed nothing newer is learnt: what a server tells then may
have them in it or not, and with them laid over it the file could have bytes that it never had.
Methods expect `Inode.lock` held by the caller, unless they say otherwise; none does I/O, and none blocks but
those that await something. `Inode.commit_lock` is taken before `lock`, never after, and is held over a
whole commit.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fusefs.buffers import DirtyBuffers
from fusefs.changes import ChangeSet, PendingBlock, Unfinished
from fusefs.committed import CommittedMap
from fusefs.extents import END_OF_FILE, Placement, Span
from fusefs.patience import LOOK_SECONDS, CallLock
from wire.errors import QuorumfsError
from wire.messages import Attributes, Birth, BlockRecord, FileMap

if TYPE_CHECKING:
    from fusefs.handles import Handle


class Learnt(enum.IntEnum):
    """What an answer of the server tells about a file's contents that was not known here."""

    NOTHING = 0
    OTHER_BYTES = 1
    GROWTH = 2
    """Other bytes, and the file is longer than it was."""
    SHRINKAGE = 3
    """Other bytes, and the file is shorter than it was."""


Source = bytes | PendingBlock | BlockRecord
"""Where bytes come from. A part of a file that has no source is a hole."""


class Inode:
    """One inode that this mount has open."""

    def __init__(self, ino: int, look: Callable[[], None] = lambda: None) -> None:
        self.ino = ino
        self._look = look
        """Raises Interrupted if who waits is to go on no longer."""
        self.lock = threading.RLock()
        self.commit_lock = CallLock(look)
        self.locking = CallLock(look)
        """Held over a call about file locks, so that the server carries them out in the order of here."""
        self.drops = 0
        """So often changes were dropped because they could not be committed."""
        self.losses = 0
        """So often a session has died with locks, of whatever files, while this one was open."""
        self.attributes: Attributes | None = None
        self.committed = CommittedMap()
        self.committing: ChangeSet | None = None
        self.changes = ChangeSet()
        self.buffers = DirtyBuffers()
        self.dirty_since: float | None = None
        self.uploads: list[PendingBlock] = []
        """What servers may have been sent, and is neither committed nor abandoned."""
        self.used_uploads = 0
        """How many of them waiting changes used when that was looked at last; 0 after a commit."""
        self.handles: set[Handle] = set()
        self.references = 0
        self.birth: Birth | None = None
        """How its first commit makes the file, if no server knows of it yet."""
        self.made_as: tuple[int, bytes] | None = None
        """The directory and name that this mount made it under, if it did."""
        self.last_error: QuorumfsError | None = None
        self.unfinished: Unfinished | None = None
        self.write_finished = threading.Condition(self.lock)
        self.commit_ended = threading.Condition(self.lock)
        self.durable_version = -1
        """The version of the contents that is known to survive a power loss."""

    # what it is now

    def base(self) -> Attributes:
        """Return the committed attributes last learnt."""
        assert self.attributes is not None, "an inode is used only after open or create has answered"
        return self.attributes

    def size(self) -> int:
        """Return the size as this mount's programs see it."""
        size = self.base().size
        if self.committing is not None:
            size = self.committing.size_over(size)
        return self.changes.size_over(size)

    def is_changed(self) -> bool:
        """Tell whether there is anything that is not committed."""
        return self.committing is not None or not self.changes.is_empty()

    def hides_old_content(self) -> bool:
        """Tell whether committed bytes were cut off by changes that wait (they come back if those fail)."""
        return self.changes.cut is not None and self.changes.cut < self.base().size

    def view(self) -> Attributes:
        """Return the attributes as this mount's programs see them."""
        base = self.base()
        if not self.is_changed():
            return base
        newest = self.changes if self.committing is None or not self.changes.is_empty() else self.committing
        size = self.size()
        waiting = self.buffers.bytes + sum(span.end - span.start for span in self.changes.map)
        return base._replace(
            size=size,
            mtime_ns=newest.mtime_ns or base.mtime_ns,
            ctime_ns=max(base.ctime_ns, newest.changed_ns),
            allocated_bytes=min(base.allocated_bytes + waiting, -(-size // 4096) * 4096),
        )

    def has_writer(self) -> bool:
        return any(handle.writing for handle in self.handles)

    def _settle(self) -> None:
        """Move what was appended, and waits, to where the file ends by what is known now."""
        changes = self.changes
        if changes.append_from is None:
            return
        size = self.base().size
        if self.committing is not None:
            size = self.committing.size_over(size)
        end = max(size if changes.cut is None else min(size, changes.cut), changes.extend_unappended_to)
        if (distance := end - changes.append_from) != 0:
            changes.map.move(changes.append_from, distance)
            self.buffers.move(changes.append_from, distance)
            changes.extend_to += distance
            changes.append_from = end

    # learning from the server

    def _is_closed_to(self, version: int) -> bool:
        """Tell whether a version of the contents is newer than what is being committed was laid over."""
        return self.committing is not None and version > self.base().version

    def await_commit(self, version: int) -> None:
        """Wait until this version can be learnt. Raises Interrupted."""
        while self._is_closed_to(version):
            self._await_end()

    def await_end_of_commit(self) -> None:
        """Wait until the commit that is under way now has ended, if one is. Raises Interrupted."""
        committing = self.committing
        while committing is not None and self.committing is committing:
            self._await_end()

    def _await_end(self) -> None:
        if not self.commit_ended.wait(LOOK_SECONDS):
            self._look()

    def learn_attributes(self, attributes: Attributes) -> Learnt:
        """Take over attributes unless they are older; tell what they say of the contents."""
        known = self.attributes
        if known is not None and attributes.version < known.version:
            return Learnt.NOTHING
        if self._is_closed_to(attributes.version):
            return Learnt.NOTHING
        size = self.size() if known is not None else 0
        self.attributes = attributes
        self._settle()
        if attributes.version == self.committed.version:
            return Learnt.NOTHING
        self.committed.reset(attributes.version)
        return Learnt.NOTHING if known is None else self._learnt(size)

    def learn_map(self, offset: int, run: FileMap) -> Learnt:
        """Take over a run of the committed extents unless it is older; tell what it says of the contents."""
        base = self.base()
        if run.version < base.version or self._is_closed_to(run.version):
            return Learnt.NOTHING
        learnt = Learnt.NOTHING
        if run.version > base.version:
            size = self.size()
            self.attributes = base._replace(size=run.size, version=run.version)
            self._settle()
            learnt = self._learnt(size)
        self.committed.learn(offset, run)
        return learnt

    def _learnt(self, old_size: int) -> Learnt:
        return compare_sizes(old_size, self.size())

    # changes

    def write(self, offset: int, data: memoryview) -> int:
        """Note a write; return how many more bytes are dirty now."""
        added = self.buffers.write(offset, data)
        changes, end = self.changes, offset + len(data)
        changes.extend_to = max(changes.extend_to, end)
        if changes.append_from is not None and offset < changes.append_from:
            changes.extend_unappended_to = max(changes.extend_unappended_to, min(end, changes.append_from))
        self._touch()
        return added

    def append(self, data: memoryview) -> int:
        """Note a write at the end of the file, wherever that is; return how many more bytes are dirty."""
        changes = self.changes
        if changes.append_from is None:
            changes.append_from, changes.extend_unappended_to = self.size(), changes.extend_to
        return self.write(self.size(), data)

    def may_move(self, end: int | None) -> bool:
        """Tell whether a change up to `end` would go with appends that wait to where others leave the end.

        None: the change is an append, and holes that wait would go along with it: those past the end that is
        known here, in what others have appended.

        Nothing does where the file is cut first: what others have appended by then is not there any more.
        """
        changes = self.changes
        if changes.cut is not None:
            changes.append_from = None
            return False
        if end is None:
            return changes.map.end() > self.size()
        return changes.append_from is not None and end > changes.append_from

    def truncate(self, size: int, *, cut: bool = False) -> int:
        """Note a new size; return how many dirty bytes were dropped. `cut`: it is longer than is known."""
        dropped = 0
        changes = self.changes
        changes.append_from = None
        if cut or size < self.size() or (size == 0 and changes.cut is None):
            changes.cut = size if changes.cut is None else min(changes.cut, size)
            changes.extend_to = min(changes.extend_to, size)
            changes.map.erase(size, END_OF_FILE)
            dropped = self.buffers.erase(size, None)
        changes.extend_to = max(changes.extend_to, size)
        self._touch()
        return dropped

    def punch(self, start: int, end: int) -> int:
        """Note that [start, end) is a hole from now on; return how many dirty bytes were dropped."""
        dropped = self.buffers.erase(start, end)
        self.changes.map.overlay(Span(start, end, None, 0))
        self._touch()
        return dropped

    def extend(self, size: int) -> None:
        """Note that the file has at least so many bytes; if it has anyway, only when it was changed."""
        if size > self.size():
            self.changes.append_from = None
            self.changes.extend_to = size
        self._touch()

    def set_mtime(self, mtime_ns: int) -> None:
        """Note that the modification time was set by hand: a commit must not move it again."""
        for change in (self.changes, self.committing):
            if change is not None and not change.is_empty():
                change.mtime_ns = mtime_ns

    def _touch(self) -> None:
        self.changes.mtime_ns = self.changes.changed_ns = time.time_ns()
        if self.dirty_since is None:
            self.dirty_since = time.monotonic()

    def seal_full(self) -> list[PendingBlock]:
        """Turn the full buffers into pending blocks; return them."""
        return [self._place(data, placements) for data, placements in self.buffers.take_full()]

    def seal_all(self) -> list[PendingBlock]:
        """Turn all dirty bytes into pending blocks; return them."""
        return [self._place(data, placements) for data, placements in self.buffers.take_all()]

    def _place(self, data: bytearray, placements: list[Placement]) -> PendingBlock:
        block = PendingBlock(data)
        for offset, length, block_offset in placements:
            self.changes.map.overlay(Span(offset, offset + length, block, block_offset))
        return block

    def note_part(self, unfinished: Unfinished | None) -> None:
        """Note whether the write(2) whose bytes have just come may have more of them."""
        if self.unfinished is not None or unfinished is not None:
            self.unfinished = unfinished
            self.write_finished.notify_all()

    def await_whole_writes(self, thread: int | None) -> None:
        """Wait until no appending write(2) is here in part only; `thread` is known to be in none."""
        while (part := self.unfinished) is not None and part.thread != thread:
            seconds = part.until - time.monotonic()
            if seconds <= 0:
                break
            self.write_finished.wait(seconds)
        self.note_part(None)

    def begin_commit(self) -> ChangeSet:
        """Set the changes apart that a commit is going to carry out."""
        self.seal_all()
        self.committing, self.changes, self.dirty_since = self.changes, ChangeSet(), None
        self.committing.losses = self.losses
        return self.committing

    def finish_commit(self, change: ChangeSet, attributes: Attributes, durable: bool) -> Learnt:
        """Follow a commit that succeeded; tell whether the contents may have changed otherwise meanwhile."""
        size = self.size()
        self.end_commit()
        moved = change.follow_appends(attributes.size)
        # An extension that makes one version, another mount may have made of it: it is not taken for our own.
        alone = attributes.version - self.base().version == change.makes_version()
        if alone:
            if durable and self.durable_version == self.base().version:
                self.durable_version = attributes.version
            self.committed.apply(change, attributes.version)
            self.attributes = attributes
        else:
            self.learn_attributes(attributes)
        self._settle()
        return Learnt.NOTHING if alone and not moved else self._learnt(size)

    def end_commit(self) -> None:
        """Note that what was being committed is not any more, whether it succeeded or not."""
        self.committing = None
        self.commit_ended.notify_all()

    def lose(self, error: QuorumfsError) -> None:
        """Note that locks are gone under which this may have been changed: who writes it is told so.

        The commit that is under way is not to be sent again.
        """
        self.losses += 1
        for handle in self.handles:
            if handle.writing:
                handle.error = error

    def drop_changes(self) -> int:
        """Forget the changes that wait; return how many dirty bytes went (sealed blocks not counted)."""
        dropped = self.buffers.bytes
        self.drops += 1
        self.changes, self.buffers = ChangeSet(), DirtyBuffers()
        self.dirty_since = None
        return dropped

    # reading

    def first_unknown(self, start: int, end: int) -> int | None:
        """Return from where on the committed map must be fetched to plan [start, end); None: nowhere."""
        end = min(end, self.base().size)
        for change in (self.changes, self.committing):
            if change is not None and change.cut is not None:
                end = min(end, change.cut)
        return self.committed.first_unknown(start, end)

    def plan(self, start: int, end: int) -> list[Span[Source]]:
        """Return where the bytes [start, end) come from, in order; what is left out is a hole.

        All of the committed map that is needed must be known (CommittedMap.first_unknown).
        """
        end = min(end, self.size())
        if start >= end:
            return []
        if not self.is_changed():
            return [*self.committed.find(start, end)]
        found: list[Span[Source]] = [*self.buffers.find(start, end)]
        wanted = _gaps(found, start, end)
        for change in (self.changes, self.committing):
            if change is None:
                continue
            below: list[tuple[int, int]] = []
            for low, high in wanted:
                found.extend(span for span in change.map.find(low, high) if span.source is not None)  # type: ignore[misc]
                below.extend(change.map.gaps(low, high))
            wanted = below if change.cut is None else _clip(below, change.cut)
        for low, high in wanted:
            found.extend(self.committed.find(low, min(high, self.base().size)))
        found.sort(key=lambda span: span.start)
        return found


def compare_sizes(old_size: int, new_size: int) -> Learnt:
    """Tell what it means that a file has other bytes, and its size changed so."""
    if new_size == old_size:
        return Learnt.OTHER_BYTES
    return Learnt.GROWTH if new_size > old_size else Learnt.SHRINKAGE


def _gaps(found: list[Span[Source]], start: int, end: int) -> list[tuple[int, int]]:
    gaps: list[tuple[int, int]] = []
    for span in found:
        if span.start > start:
            gaps.append((start, span.start))
        start = span.end
    if start < end:
        gaps.append((start, end))
    return gaps


def _clip(ranges: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    return [(low, min(high, end)) for low, high in ranges if low < end]
