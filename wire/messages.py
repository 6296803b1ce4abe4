"""The messages that cross the wire, as immutable named tuples.

A message is packed as the plain list of its fields, in both encodings, and rebuilt from
the type annotations of the method table. All times are nanoseconds since the epoch, all
sizes and offsets bytes. This module must not import anything of the project; it is pure
data and safe in any thread.
"""

from __future__ import annotations

from typing import NamedTuple

ROOT_INODE = 1
"""The inode number of the root directory."""

LARGEST_MODE = 0o177777
"""A mode has no further bits: file type, set-id and sticky bits, permissions. What is larger is none."""

BLOCK_ID_BYTES = 16
"""A block id is the 8-byte session that wrote it, then an 8-byte counter, both big-endian."""


class Ticket(NamedTuple):
    """Makes a mutating call repeatable: the metadata server keeps the last answer of each slot.

    A client never has two calls in flight on one slot, and raises `sequence` by one for
    each new call (not for a re-sent one). See docs/decisions/0002-exactly-once.md.
    """

    session: int
    slot: int
    sequence: int


class SessionInfo(NamedTuple):
    """A new session's number, how long it lives without a heartbeat, and the server's epoch.

    `ring` is where its ring is while it counts as alone (wire.ring); b"": nowhere.
    """

    session: int
    lease_ms: int
    epoch: int
    ring: bytes = b""


class Renewal(NamedTuple):
    """A session lives on: the server's epoch, and how long from its answer on the session counts as alone.

    While it does, no other session begins, and nobody else changes names, attributes or contents. Who asked
    counts `alone_ms` from before it asked; 0: others may be there.

    `asks_opens` is a number if the session is to say, with that number, what it has open (tell_open); else 0.
    `ring_term` is the term of its ring of changes (wire.ring), 0 if it has none.
    """

    epoch: int
    alone_ms: int
    asks_opens: int = 0
    ring_term: int = 0


class Heartbeat(NamedTuple):
    """The answer to a heartbeat.

    `epoch` changes when the metadata server was restarted: the client then reclaims its open
    files. `writable` is false, with a `reason` for people, while fewer than Qw data servers are up.
    With `full`, also with a reason, too many of them have no room: what needs no new block still goes.
    `alone_ms`, `asks_opens` and `ring_term` are as in Renewal.
    """

    epoch: int
    writable: bool
    reason: str
    full: bool = False
    alone_ms: int = 0
    asks_opens: int = 0
    ring_term: int = 0


class Attributes(NamedTuple):
    """What stat(2) shows of an inode. `version` grows with every change of the contents."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    allocated_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int


class AttributeChanges(NamedTuple):
    """New values of attributes; None leaves one as it is. The size changes by a Commit only."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Entry(NamedTuple):
    """One name in a directory."""

    name: bytes
    attributes: Attributes


class DirectoryPage(NamedTuple):
    """Entries in the order of their names' bytes, after a given name; `complete` when none follow.

    `secured` are the inodes among them that have extended attributes of the space `security`: programs that
    list a directory ask for those of every file.
    """

    entries: list[Entry]
    complete: bool
    secured: list[int]


class BlockRecord(NamedTuple):
    """A block as the metadata server committed it: its digest is the witness."""

    block: bytes
    length: int
    digest: bytes


class Lag(NamedTuple):
    """A block that these data servers, by number, have not acknowledged."""

    block: bytes
    servers: list[int]


class LagCount(NamedTuple):
    """How much one data server lags behind: blocks, and their bytes."""

    server: int
    blocks: int
    bytes: int


class Milestone(NamedTuple):
    """How far a metadata database is: the number grows by one in each period with changes."""

    database: str
    number: int


class RecentBlocks(NamedTuple):
    """The blocks committed last. Not `complete`: some of before this server's start may be missing."""

    complete: bool
    blocks: list[bytes]


class Extent(NamedTuple):
    """File bytes [offset, offset+length) are block bytes from `block_offset`; block None is a hole."""

    offset: int
    length: int
    block: bytes | None
    block_offset: int


class MappedExtent(NamedTuple):
    """An extent of a committed file, with its block's length and witness (never a hole)."""

    offset: int
    length: int
    block: bytes
    block_offset: int
    block_length: int
    digest: bytes


class Reference(NamedTuple):
    """An extent of a file that refers to a known block from `block_offset` on."""

    ino: int
    offset: int
    length: int
    block_offset: int


class SparseBlock(NamedTuple):
    """A block that files use little of, and all extents that refer to it."""

    record: BlockRecord
    references: list[Reference]


class SparsePage(NamedTuple):
    """The mostly dead ones of a run of blocks up to the id `after`; b"" when none was left to look at."""

    after: bytes
    blocks: list[SparseBlock]


class FileMap(NamedTuple):
    """A run of a file's extents in order; gaps are holes. `complete` when no extent follows the run."""

    version: int
    size: int
    extents: list[MappedExtent]
    complete: bool


class Opened(NamedTuple):
    """An open file: fresh attributes and the first run of its extents.

    `part` is its only block after the vote, if that was asked for, is small, and went well.
    """

    attributes: Attributes
    map: FileMap
    part: BlockPart | None = None


class VotedPart(NamedTuple):
    """Pieces of a block that are voted on: `piece_count` of them, 0 for all from the first on."""

    block: bytes
    first_piece: int
    piece_count: int


SMALL_FILES_AT_ONCE = 64
"""The most files that are read by one call, each one small block."""
SMALL_BLOCK_BYTES = 64 * 1024
"""A block of at most so many bytes is small: it comes whole, with the open of its file or several at once."""


class SmallReplicas(NamedTuple):
    """What one data server says of several of its small replicas, in the order asked.

    Bytes are a vote, as a digest is one. None: it is not here. b"": its record cannot be trusted.
    """

    data: list[bytes | None]
    digests: list[bytes | None]


class BlockRing(NamedTuple):
    """Where a data server's ring of blocks for a mediator is (wire.block_ring), and its term; 0: nowhere."""

    place: bytes
    term: int


class Commit(NamedTuple):
    """New contents of a file, applied in one transaction, in this order.

    1. `cut`: the file is cut to at most so many bytes (None: not cut; 0 is O_TRUNC).
    2. `extents`: each replaces what the file had in its range (a hole erases it).
    3. the size becomes max(size after the cut, extend_to).
    4. `changes` are applied; without a new mtime the server's clock is used.

    `blocks` are the records of the blocks that `extents` refer to and that are new. With `durable`
    the answer comes after the database's log is on disk.

    With `append_from` the extents from that offset on (none reaches over it) were appended by a mount
    that took the file to end there. They are moved, together, to where the file ends after the cut and
    `extend_to`, which tells nothing of them; the file ends behind them then.
    """

    cut: int | None
    extents: list[Extent]
    extend_to: int
    blocks: list[BlockRecord]
    changes: AttributeChanges
    durable: bool
    append_from: int | None = None


class Birth(NamedTuple):
    """A regular file that is made by its first commit: where, and as NamespaceMethods.create takes it."""

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int


class FileLock(NamedTuple):
    """A lock of bytes `start` to `last` (included, at most 2**63 - 1) of a file, or a range to unlock.

    `flock` tells the two kinds apart, which never stand in each other's way: record locks as fcntl(2), and
    whole files as flock(2). `owner` is a number that the session chose; `pid` is for people.
    """

    ino: int
    flock: bool
    owner: int
    start: int
    last: int
    exclusive: bool
    pid: int


class LockGrant(NamedTuple):
    """A lock was granted by the metadata server that started at `epoch`; the file's attributes then."""

    epoch: int
    attributes: Attributes


class LockHolder(NamedTuple):
    """A lock that stands in the way, and whose it is."""

    session: int
    name: str
    lock: FileLock


class BlockPart(NamedTuple):
    """Some pieces of a block: all its pieces' digests (32 bytes each, joined) and the pieces' bytes.

    `length` is the whole block's. A block of one piece has an empty list of piece digests, and so may
    all of a small one that was asked for together with others. The bytes may lie
    in memory that is used again when nobody refers to them.
    """

    length: int
    piece_digests: bytes
    data: bytes | bytearray | memoryview


class Usage(NamedTuple):
    """Room in the file system, as statfs(2) tells it; `files` counts those there are and `free_files`."""

    total_bytes: int
    free_bytes: int
    files: int
    free_files: int


class Identity(NamedTuple):
    """Who answers: "mediator", "metaserver" or "dataserver", its cluster, number, and start epoch."""

    kind: str
    cluster: str
    number: int
    epoch: int
