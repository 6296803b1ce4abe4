"""What of a file is not committed yet: what one commit will change, and the blocks that it brings.

No I/O; who uses it holds the lock of the inode (fusefs.inodes).
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import NamedTuple

from fusefs.extents import RangeMap
from wire.messages import BlockRecord


class PendingBlock:
    """A block of this mount that no commit has made part of a file yet. Its bytes never change.

    `data` is there until the put is acknowledged; `record` from the moment that it has an id.
    """

    __slots__ = ("data", "length", "record", "tried", "upload")

    def __init__(self, data: bytearray) -> None:
        self.data: bytearray | None = data
        self.length = len(data)
        self.record: BlockRecord | None = None
        self.tried: BlockRecord | None = None
        """Under which id servers may have it, acknowledged or not."""
        self.upload: Future[None] | None = None


class ChangeSet:
    """What one commit will change: first the cut, then the spans, then the size.

    What lies from `append_from` on was appended: the metadata server moves it to where the file ends then,
    after `extend_unappended_to` (see wire.messages.Commit).
    """

    __slots__ = (
        "append_from",
        "changed_ns",
        "cut",
        "extend_to",
        "extend_unappended_to",
        "losses",
        "map",
        "mtime_ns",
        "sent",
    )

    def __init__(self) -> None:
        self.cut: int | None = None
        self.extend_to = 0
        self.losses = 0
        self.append_from: int | None = None
        self.extend_unappended_to = 0
        self.map: RangeMap[PendingBlock | None] = RangeMap()
        self.mtime_ns: int | None = None
        self.changed_ns = 0
        """When the last of it came; `mtime_ns` may have been set by hand since."""
        self.sent = False
        """A commit of it was sent, and may have reached a server."""

    def is_empty(self) -> bool:
        return self.mtime_ns is None

    def makes_version(self) -> bool:
        """Tell whether its commit makes a version of whatever the file is then: an extension may not."""
        return self.cut is not None or len(self.map) > 0

    def follow_appends(self, size: int) -> bool:
        """Move what was appended to the end of a file of `size` bytes; True if it lay elsewhere."""
        distance = size - self.extend_to
        if self.append_from is None or distance == 0:
            return False
        self.map.move(self.append_from, distance)
        self.append_from += distance
        self.extend_to = size
        return True

    def size_over(self, size: int) -> int:
        """Return the file's size after these changes of a file of `size` bytes."""
        return max(size if self.cut is None else min(size, self.cut), self.extend_to)


class Unfinished(NamedTuple):
    """The kernel may send the rest of an appending write(2) of a thread, and does so before `until`."""

    thread: int
    until: float
