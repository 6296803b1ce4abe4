"""What the kernel may keep of names and attributes, and for how long: nothing unless this mount is alone.

What it keeps it does not ask for, so that nothing may change by itself meanwhile: not by other mounts, nor by
this one but for a request of the kernel, which then knows itself what to forget, or for a commit, after which
it is told (PageLedger.attributes_changed). No I/O; safe in any thread.
"""

from __future__ import annotations

import stat

from fusefs.cache import NameCache
from fusefs.grant import Grant
from fusefs.handles import OpenInodes
from wire.messages import Attributes

SET_ID = stat.S_ISUID | stat.S_ISGID


class Keeping:
    """Tells for how many seconds the kernel may rely on what it is told now."""

    def __init__(self, grant: Grant, cache: NameCache, opens: OpenInodes) -> None:
        self._grant, self._cache, self._opens = grant, cache, opens

    def most_seconds(self) -> float:
        """Return how long it may rely on anything."""
        return self._grant.kernel_seconds()

    def covers(self, seconds: float) -> bool:
        """Tell whether what it was told to keep for so long, just now, will have been right all the time."""
        return self._grant.covers(seconds)

    def seconds(self, attributes: Attributes) -> float:
        """Return how long it may rely on an inode's attributes.

        Not at all while the inode is open for writing, since a commit changes it, or if a write takes set-id
        bits away from it.
        """
        seconds = self._grant.kernel_seconds()
        return seconds if seconds and self._is_steady(attributes) else 0.0

    def new_seconds(self, attributes: Attributes) -> float:
        """Return how long it may rely on the attributes of a file that was just created, and is open."""
        if attributes.mode & SET_ID or not self._cache.is_certain(attributes):
            return 0.0
        return self._grant.kernel_seconds()

    def name_seconds(self, parent: int, name: bytes, attributes: Attributes) -> float:
        """Return how long it may rely on a name being an inode's."""
        seconds = self._grant.kernel_seconds()
        if not seconds or not self._cache.is_certain_name(parent, name, attributes.ino):
            return 0.0
        return 0.0 if self._is_being_written(attributes.ino) else seconds

    def absence_seconds(self, parent: int, name: bytes) -> float:
        """Return how long it may rely on there being no such name."""
        return self._grant.kernel_seconds() if self._cache.is_absent(parent, name) else 0.0

    def find(self, parent: int, name: bytes) -> Attributes | None:
        """Return a name's attributes if it may rely on both."""
        attributes = self._cache.find(parent, name)
        if attributes is None or not self._cache.is_certain_name(parent, name, attributes.ino):
            return None
        return attributes if self._is_steady(attributes) else None

    def _is_steady(self, attributes: Attributes) -> bool:
        if attributes.mode & SET_ID and stat.S_ISREG(attributes.mode):
            return False
        return self._cache.is_certain(attributes) and not self._is_being_written(attributes.ino)

    def _is_being_written(self, ino: int) -> bool:
        inode = self._opens.find(ino)
        if inode is None:
            return False
        with inode.lock:
            return inode.made_as is not None or inode.has_writer() or inode.is_changed()
