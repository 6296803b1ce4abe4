"""The database's schema, column by column. Only text and constants; safe in any thread.

The file is `meta.sqlite` in the metadata server's directory, in WAL mode. `application_id` says that
it is ours, `user_version` is the format version. All times are nanoseconds since the epoch, all sizes
and offsets bytes.

facts           what the database is
    name        "cluster", "database", "configuration", in a copy, or a database put back from one,
                "copied_ns", and in one that was found to be older than data servers know "found_older_ns"
    value       the cluster's name (a database of another cluster is refused); random, and the same in all
                copies of this database; the cluster's configuration file as of the last start, should it be
                lost; when the copy was made; when that was found

counters        numbers that are never given twice
    name        "inode", "session", "epoch" or "milestone"
    next        no number from here on was ever given. Inode numbers are reserved in runs, so some
                below it were not given either. Each start of the server takes one epoch, and goes on with
                sessions far above; the milestone is the last one that was given (metaserver.milestones)

inodes          one row a file, directory, symbolic link, FIFO, socket or device
    ino         the inode number; 1 is the root
    mode        type and permission bits, as st_mode
    nlink       names of a file; 2 + subdirectories of a directory; 0: it has no name any more, and
                lives while a session has it open (an orphan); -1: condemned, nobody has it open and
                its contents are removed later, or piece by piece: it must not be shown to anybody
    uid, gid    owner and group
    rdev        device number of a device node, else 0
    size        length of a file or of a symbolic link's target, 0 for others
    allocated_bytes   sum of the lengths of its extents
    atime_ns, mtime_ns, ctime_ns   as in stat(2)
    version     grows with every change of the contents
    parent      a directory's parent (the root's is the root), 0 for others and for removed directories
    target      a symbolic link's target, NULL for others

entries         one row a name; the order of its key is the order of read_directory
    parent      the directory
    name        1 to 255 bytes, without / and NUL, not . or ..
    ino         what it names

extents         one row a run of file bytes in a block; gaps are holes; runs of a file never overlap
    ino         the file
    offset      where the run begins in the file
    length      at least 1
    block       the block that has the bytes
    block_offset   where they begin in the block

blocks          one row a committed block, while an extent refers to it
    block       its id: 8 bytes session, 8 bytes counter, both big-endian
    length      of the whole block
    digest      the witness (wire.digest.block_digest)
    refs        how many extents refer to it; at 0 it moves to `garbage` in the same transaction

garbage         one row a block that was committed once and that nothing refers to; leaves by `forget`
    block       its id
    length      of the whole block
    since_ns    when it was superseded

lag             one row a replica that is known to be missing; nothing for all that are there
    block       a committed block
    server      the number of a data server that has not acknowledged it

fences          one row a run of sessions whose blocks are kept though nothing refers to them, because the
                database was put back from a copy, or begun after they were written, or was started and
                gave no such numbers (metaserver.fence)
    first, last the sessions' numbers, both included
    since_ns    when it was put back, begun or started

restorations    one row a time that a copy took this database's place; gone when it has been served for a
                lease, as mounts may not know it until then
    since_ns    when

xattrs          one row an extended attribute
    ino         whose
    name        1 to 255 bytes, without NUL
    value       up to 64 KiB

sessions        one row a living session; its lease and its open files are in memory only
    session     its number
    name        tells people whose it is
    since_ns    when it was opened

rings           how much of each session's ring was carried out (metaserver.rings)
    session     of a living session that has changed something so
    taken       the number of the last change

slots           the last successful answer of each slot (docs/decisions/0002-exactly-once.md)
    session     of a living session
    slot        0 to 1023
    sequence    of the call that was answered
    answer      metaserver.answers.encode(answer)
"""

from __future__ import annotations

APPLICATION_ID = 0x51464D44
"""PRAGMA application_id: "QFMD"."""

CONFIGURATION = "configuration"
"""The fact that is the text of the cluster's configuration file, directories relative to its place."""

FORMAT_VERSION = 3
"""PRAGMA user_version: raised with every change that an older release cannot read."""

SCHEMA = """
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE inodes (
    ino INTEGER PRIMARY KEY,
    mode INTEGER NOT NULL,
    nlink INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    size INTEGER NOT NULL,
    allocated_bytes INTEGER NOT NULL,
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    version INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    target BLOB
) STRICT;
CREATE INDEX orphans ON inodes (ino) WHERE nlink <= 0;
CREATE TABLE entries (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX entries_by_ino ON entries (ino);
CREATE TABLE extents (
    ino INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    block BLOB NOT NULL,
    block_offset INTEGER NOT NULL,
    PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX extents_by_block ON extents (block);
CREATE TABLE blocks (
    block BLOB PRIMARY KEY,
    length INTEGER NOT NULL,
    digest BLOB NOT NULL,
    refs INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE garbage (
    block BLOB PRIMARY KEY,
    length INTEGER NOT NULL,
    since_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX garbage_by_age ON garbage (since_ns);
CREATE TABLE xattrs (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    session INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    since_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE slots (
    session INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (session, slot)
) STRICT, WITHOUT ROWID;
"""

ADDED_SCHEMA = """
CREATE TABLE IF NOT EXISTS lag (
    block BLOB NOT NULL,
    server INTEGER NOT NULL,
    PRIMARY KEY (block, server)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lag_by_server ON lag (server);
CREATE TABLE IF NOT EXISTS fences (
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    since_ns INTEGER NOT NULL,
    PRIMARY KEY (first, last)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS restorations (since_ns INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rings (
    session INTEGER PRIMARY KEY,
    taken INTEGER NOT NULL
) STRICT;
"""
"""Made also in a database of a release that had no such tables, and did without."""
