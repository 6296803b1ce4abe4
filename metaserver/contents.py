"""Contents of files: commits, file maps, and the end of files that nobody has any more.

The arithmetic is in `extent_rules`, the counting in `blocks`. In the event loop's thread only; each
public function is called inside of a transaction.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence

from metaserver import extent_rules
from metaserver.blocks import Blocks
from metaserver.inodes import Inodes
from metaserver.store import Store
from wire.attribute_rules import changed
from wire.errors import InternalError, InvalidArgument, StaleFile
from wire.messages import (
    SMALL_BLOCK_BYTES,
    SMALL_FILES_AT_ONCE,
    Attributes,
    Commit,
    Extent,
    FileMap,
    MappedExtent,
    Opened,
)

FIRST_RUN_EXTENTS = 256
"""So many extents come with the answer to `open`."""
RUN_EXTENTS_MAX = 10_000
REMOVED_AT_ONCE = 1000
"""A file's contents are removed by so many extents a transaction."""

_TOUCHING = (
    "SELECT offset, length, block, block_offset FROM extents WHERE ino = ?1 AND offset <= ?3 AND offset >="
    " coalesce((SELECT max(offset) FROM extents WHERE ino = ?1 AND offset <= ?2), ?2) ORDER BY offset"
)
_MAP = (
    "SELECT e.offset, e.length, e.block, e.block_offset, b.length, b.digest"
    " FROM extents AS e LEFT JOIN blocks AS b ON b.block = e.block WHERE e.ino = ?1 AND e.offset >="
    " coalesce((SELECT max(offset) FROM extents WHERE ino = ?1 AND offset <= ?2), ?2)"
    " ORDER BY e.offset LIMIT ?3"
)


class Contents:
    """The extents of all files."""

    def __init__(self, store: Store, inodes: Inodes) -> None:
        self._store = store
        self._inodes = inodes
        self._blocks = Blocks(store)
        self.condemned: list[int] = []
        """Inodes whose contents are to be removed soon, by metaserver.reaper."""

    def commit(
        self,
        session: int,
        ino: int,
        commit: Commit,
        born: Attributes | None = None,
        now_ns: int | None = None,
    ) -> Attributes:
        """Make new extents a file's contents; return its new attributes.

        Args:
            session: whose blocks they are.
            ino: the file.
            commit: what changes.
            born: the attributes of a new file, whose inode is added by this.
            now_ns: the time to take for it; None: this server's.

        Raises:
            StaleFile, InvalidArgument, FileTooLarge: as in wire.methods.bookkeeping; nothing is changed then.
        """
        old = born or self._inodes.load(ino)
        if not stat.S_ISREG(old.mode):
            raise InvalidArgument(f"inode {ino} is no regular file")
        commit = extent_rules.place_appends(commit, old.size)
        size = extent_rules.check_ranges(commit, old.size)
        allocated = old.allocated_bytes
        if commit.cut is not None or commit.extents or commit.blocks:
            allocated += self._replace(session, old, commit)
        contents_changed = commit.cut is not None or bool(commit.extents) or size != old.size
        new = self._after_commit(old, commit, contents_changed, now_ns or self._store.now_ns())
        new = new._replace(size=size, allocated_bytes=allocated)
        if born:
            self._inodes.add(new)
        else:
            self._inodes.save(new)
        return new

    def _replace(self, session: int, file: Attributes, commit: Commit) -> int:
        """Apply a commit's cut and extents; return by how much the allocated bytes change."""
        ranges = extent_rules.replaced_ranges(commit.cut, commit.extents)
        old = self._touching(file.ino, extent_rules.spans(ranges)) if file.allocated_bytes else []
        removed, added = replacement = extent_rules.replace(old, ranges)
        used = (extent for extent in commit.extents if extent.block is not None)
        self._blocks.refer(session, commit.blocks, used, replacement)
        if removed:
            self._store.executemany(
                "DELETE FROM extents WHERE ino = ? AND offset = ?",
                [(file.ino, extent.offset) for extent in removed],
            )
        if added:
            self._store.executemany(
                "INSERT INTO extents VALUES (?, ?, ?, ?, ?)", [(file.ino, *extent) for extent in added]
            )
        return _length(added) - _length(removed)

    def _touching(self, ino: int, spans: Sequence[tuple[int, int]]) -> list[Extent]:
        """Return a file's extents that may overlap or touch a span, each once, in order."""
        found: list[Extent] = []
        for start, end in spans:
            rows = self._store.execute(_TOUCHING, (ino, start, end)).fetchall()
            if found and rows:
                last = found[-1].offset
                rows = [row for row in rows if row[0] > last]
            found.extend(map(Extent._make, rows))
        return found

    @staticmethod
    def _after_commit(old: Attributes, commit: Commit, contents_changed: bool, now: int) -> Attributes:
        """Return the attributes after a commit, but for its sizes.

        Set-id bits are left alone: the kernel clears them when it takes a write, knowing who writes. A
        commit comes later, often after the chmod(2) that set them (install -m 4755, tar -xp).
        """
        new = changed(old, commit.changes, now)
        if not contents_changed:
            return new
        mtime_ns = now if commit.changes.mtime_ns is None else new.mtime_ns
        return new._replace(mtime_ns=mtime_ns, version=old.version + 1)

    def map(self, ino: int, offset: int, limit: int) -> FileMap:
        """Return up to `limit` (at most RUN_EXTENTS_MAX) extents that end after `offset`.

        Raises:
            StaleFile, InvalidArgument.
        """
        if offset < 0 or limit < 1:
            raise InvalidArgument("a file map begins at 0 or later, and has at least one extent")
        return self.map_of(self._inodes.load(ino), offset, min(limit, RUN_EXTENTS_MAX))

    def map_of(self, file: Attributes, offset: int, limit: int) -> FileMap:
        """Return a run of a file's extents that end after `offset`.

        Raises:
            InternalError: one is of a block that is not known; left out, it would be read as a hole.
        """
        if not file.allocated_bytes:
            return FileMap(file.version, file.size, [], True)
        rows = self._store.execute(_MAP, (file.ino, offset, limit + 2)).fetchall()
        if rows and rows[0][0] + rows[0][1] <= offset:
            del rows[0]
        if any(witness is None for *_, witness in rows):
            raise InternalError(f"inode {file.ino} refers to a block that is not known: see `quorumfs fsck`")
        return FileMap(
            file.version, file.size, list(map(MappedExtent._make, rows[:limit])), len(rows) <= limit
        )

    def small_files(self, inodes: Sequence[int]) -> list[Opened | None]:
        """Return attributes and map of each file that is one small block; None for others.

        Raises:
            InvalidArgument: they are too many.
        """
        if len(inodes) > SMALL_FILES_AT_ONCE:
            raise InvalidArgument(f"{len(inodes)} files: at most {SMALL_FILES_AT_ONCE} at once")
        return [self._small_file(ino) for ino in inodes]

    def _small_file(self, ino: int) -> Opened | None:
        try:
            file = self._inodes.load(ino)
            if not 0 < file.allocated_bytes <= SMALL_BLOCK_BYTES:
                return None
            found = self.map_of(file, 0, 1)
        except (StaleFile, InternalError):
            return None
        whole = found.complete and found.extents[0].block_length <= SMALL_BLOCK_BYTES
        return Opened(file, found) if whole else None

    def condemn(self, ino: int) -> None:
        """Take an inode that nobody has any more out of sight, so that its contents can go later."""
        self._store.execute("UPDATE inodes SET nlink = -1 WHERE ino = ?", (ino,))
        self.condemned.append(ino)

    def remove_condemned(self, inodes: Sequence[int]) -> Sequence[int]:
        """Remove inodes, as many as one transaction may take long; return those that were not looked at.

        Some may not be condemned, for what condemned them failed: they stay. Of one with very much contents a
        part is removed; the rest is left to who looks for such inodes.
        """
        most_rows = self._store.changed_rows() + 4 * REMOVED_AT_ONCE
        for position, ino in enumerate(inodes):
            if self._store.changed_rows() >= most_rows:
                return inodes[position:]
            row = self._store.execute("SELECT nlink FROM inodes WHERE ino = ?", (ino,)).fetchone()
            if row is not None and row[0] < 0 and not self.remove(ino):
                return inodes[position + 1 :]
        return []

    def remove(self, ino: int) -> bool:
        """Remove an inode that nobody has any more, or the first part of its contents.

        Returns:
            False when contents are left: the inode is condemned, and must be removed further.
        """
        rows = self._store.execute(
            "SELECT offset, length, block, block_offset FROM extents WHERE ino = ? ORDER BY offset LIMIT ?",
            (ino, REMOVED_AT_ONCE),
        ).fetchall()
        if rows:
            self._blocks.drop(list(map(Extent._make, rows)))
            self._store.execute("DELETE FROM extents WHERE ino = ? AND offset <= ?", (ino, rows[-1][0]))
        if len(rows) == REMOVED_AT_ONCE:
            self._store.execute(
                "UPDATE inodes SET nlink = -1, allocated_bytes = allocated_bytes - ? WHERE ino = ?",
                (sum(row[1] for row in rows), ino),
            )
            return False
        self._store.execute("DELETE FROM xattrs WHERE ino = ?", (ino,))
        self._store.execute("DELETE FROM inodes WHERE ino = ?", (ino,))
        self._store.totals["inodes"] -= 1
        return True


def _length(extents: Iterable[Extent]) -> int:
    return sum(extent.length for extent in extents)
