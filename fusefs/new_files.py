"""Which new files are told without a call: those whose first commit the metadata server cannot refuse.

Pure. See docs/decisions/0031-changes-without-a-call.md.
"""

from __future__ import annotations

import stat

from wire.messages import LARGEST_MODE, Attributes, Birth, BlockRecord, Commit, Extent, Ticket
from wire.ring import NewFile

NAME_BYTES_MAX = 255
NOTHING = BlockRecord(bytes(16), 0, bytes(32))


def new_file(ticket: Ticket, ino: int, commit: Commit, birth: Birth, told_ns: int) -> NewFile | None:
    """Return what is told of a file that this commit makes, at this time; None if it takes a call.

    It is told only if it is empty or one whole block, and need not be durable yet.
    """
    record = _whole_block(commit)
    _, _, _, atime_ns, mtime_ns = commit.changes
    is_plain = 0 < len(birth.name) <= NAME_BYTES_MAX and birth.mode <= LARGEST_MODE
    if record is None or atime_ns is None or mtime_ns is None or commit.durable or not is_plain:
        return None
    return NewFile(
        slot=ticket.slot,
        sequence=ticket.sequence,
        ino=ino,
        parent=birth.parent,
        mode=birth.mode,
        uid=birth.uid,
        gid=birth.gid,
        length=record.length,
        atime_ns=atime_ns,
        mtime_ns=mtime_ns,
        told_ns=told_ns,
        block=record.block,
        digest=record.digest,
        name=birth.name,
    )


def _whole_block(commit: Commit) -> BlockRecord | None:
    """Return the one block that is the file then, or NOTHING; None if it is anything else."""
    record = commit.blocks[0] if commit.blocks else NOTHING
    extents = [Extent(0, record.length, record.block, 0)] if commit.blocks else []
    if len(commit.blocks) > 1 or commit.extents != extents or commit.append_from is not None:
        return None
    return record if commit.extend_to == record.length else None


def attributes_of(file: NewFile) -> Attributes:
    """Return what the file is like then, as the metadata server will say."""
    return Attributes(
        ino=file.ino,
        mode=stat.S_IFREG | stat.S_IMODE(file.mode),
        nlink=1,
        uid=file.uid,
        gid=file.gid,
        rdev=0,
        size=file.length,
        allocated_bytes=file.length,
        atime_ns=file.atime_ns,
        mtime_ns=file.mtime_ns,
        ctime_ns=file.told_ns,
        version=2 if file.length else 1,
    )
