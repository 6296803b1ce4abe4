"""What attributes are after a change, for the metadata server and for a mount that makes it by itself.

Pure; safe in any thread. Sources: POSIX.1-2017, chown(2), chmod(2).
"""

from __future__ import annotations

import stat

from wire.errors import InvalidArgument
from wire.messages import LARGEST_MODE, AttributeChanges, Attributes

IDS = 2**32 - 1
"""(uid_t) -1 is nobody's number: chown(2) reads it as "leave it"."""


def without_set_id(mode: int, *, in_group: bool = True) -> int:
    """Return a mode as it is after a change of owner, or of contents by who is not root.

    What is no directory loses set-user-id, and set-group-id if its group may execute it. Without that, the
    bit means something else: it stays if who makes the change is in the group.
    """
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    return mode if in_group and not mode & stat.S_IXGRP else mode & ~stat.S_ISGID


def changed(old: Attributes, changes: AttributeChanges, now_ns: int) -> Attributes:
    """Return the attributes after `changes`. Raises InvalidArgument."""
    for identity in (changes.uid, changes.gid):
        if identity is not None and not 0 <= identity < IDS:
            raise InvalidArgument(f"{identity} is no owner or group")
    mode = old.mode
    if changes.mode is not None:
        if not 0 <= changes.mode <= LARGEST_MODE:
            raise InvalidArgument(f"mode {changes.mode:o} is out of range")
        mode = stat.S_IFMT(old.mode) | stat.S_IMODE(changes.mode)
    elif changes.uid is not None or changes.gid is not None:
        mode = without_set_id(mode)
    return old._replace(
        mode=mode,
        uid=old.uid if changes.uid is None else changes.uid,
        gid=old.gid if changes.gid is None else changes.gid,
        atime_ns=old.atime_ns if changes.atime_ns is None else changes.atime_ns,
        mtime_ns=old.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
        ctime_ns=now_ns,
    )
