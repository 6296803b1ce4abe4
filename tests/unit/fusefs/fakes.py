"""An in-memory server behind the mount's ports: counts calls, fails on demand, changes files by itself."""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from fusefs.clock import seconds_passed
from fusefs.extents import RangeMap, Span
from fusefs.filesystem import FileSystem
from fusefs.grant import Grant
from fusefs.handles import OpenInodes
from fusefs.patience import Patience
from metaserver.extent_rules import place_appends
from wire.attribute_rules import changed
from wire.digest import PIECE_BYTES, block_digest, piece_digests
from wire.errors import (
    AlreadyExists,
    NoAttribute,
    NoSpace,
    NotFound,
    QuorumfsError,
    ReadRefused,
    SessionUnknown,
    StaleFile,
    WriteFailed,
    WriteRefused,
)
from wire.messages import (
    AttributeChanges,
    Attributes,
    Birth,
    BlockPart,
    BlockRecord,
    Commit,
    DirectoryPage,
    Entry,
    FileMap,
    MappedExtent,
    Opened,
    Usage,
)


class FakeServer:
    """NamespacePort, BlockPort and WritePermission in one. One lock; no threads of its own."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failures: dict[str, list[QuorumfsError]] = {}
        self.hooks: dict[str, Callable[[], None]] = {}
        self.writable = True
        self.free_bytes = 2**50
        self.alone = False
        self.takes_removals = True
        self.reserved = {1, 2}
        self.births: list[Birth] = []
        self.full = False
        self.abandoned: list[bytes] = []
        self.session = 1
        self.durable: set[bytes] = set()
        self.blocks: dict[bytes, bytes] = {}
        self.open_inodes: set[int] = set()
        self.commits: list[Commit] = []
        self.first_run = 256
        self._lock = threading.RLock()
        self._counter = 0
        self._attributes: dict[int, Attributes] = {}
        self._maps: dict[int, RangeMap[BlockRecord]] = {}
        self._names: dict[tuple[int, bytes], int] = {}
        self._make(1, stat.S_IFDIR | 0o755)

    # what tests do

    def fail(self, method: str, *errors: QuorumfsError) -> None:
        """Let the next calls of a method raise these errors."""
        self.failures.setdefault(method, []).extend(errors)

    def committed(self, ino: int) -> bytes:
        """Return a file's committed bytes."""
        size = self._attributes[ino].size
        content = bytearray(size)
        for start, end, record, offset in self._maps[ino].find(0, size):
            content[start:end] = self.blocks[record.block][offset : offset + end - start]
        return bytes(content)

    def replace(self, ino: int, content: bytes) -> None:
        """Give a file new contents, as another mount would; the old blocks are deleted."""
        with self._lock:
            for span in self._maps[ino]:
                self.blocks.pop(span.source.block, None)
            self._counter += 1
            block = b"other-mount" + struct.pack(">I", self._counter) + b"!"
            self.blocks[block] = content
            record = BlockRecord(block, len(content), block_digest(content))
            self._maps[ino] = RangeMap([Span(0, len(content), record, 0)])
            old = self._attributes[ino]
            self._attributes[ino] = old._replace(size=len(content), version=old.version + 1)

    def set_link_count(self, ino: int, count: int) -> None:
        """Let a file have so many names."""
        self._attributes[ino] = self._attributes[ino]._replace(nlink=count)

    def _enter(self, method: str) -> None:
        self.calls[method] += 1
        if hook := self.hooks.get(method):
            hook()
        if errors := self.failures.get(method):
            raise errors.pop(0)

    # namespace

    def _make(self, ino: int, mode: int) -> Attributes:
        now = time.time_ns()
        self._attributes[ino] = Attributes(ino, mode, 1, 0, 0, 0, 0, 0, now, now, now, 1)
        self._maps[ino] = RangeMap()
        return self._attributes[ino]

    def _load(self, ino: int) -> Attributes:
        if ino not in self._attributes:
            raise StaleFile()
        return self._attributes[ino]

    def resolve(self, start: int, names: Sequence[bytes]) -> list[Attributes]:
        self._enter("resolve")
        found: list[Attributes] = []
        for name in names:
            ino = self._names.get((start, name))
            if ino is None:
                break
            found.append(self._attributes[ino])
            start = ino
        return found

    def getattr(self, ino: int) -> Attributes:
        self._enter("getattr")
        return self._load(ino)

    def setattr(self, ino: int, changes: AttributeChanges) -> Attributes:
        self._enter("setattr")
        self._attributes[ino] = changed(self._load(ino), changes, time.time_ns())
        return self._attributes[ino]

    def read_directory(self, ino: int, after: bytes, limit: int) -> DirectoryPage:
        self._enter("read_directory")
        names = sorted(name for parent, name in self._names if parent == ino and name > after)
        page = [Entry(name, self._attributes[self._names[ino, name]]) for name in names[:limit]]
        return DirectoryPage(page, len(names) <= limit, [])

    def parent(self, ino: int) -> Attributes:
        raise NotImplementedError

    def read_link(self, ino: int) -> bytes:
        raise NotImplementedError

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int, target: bytes, open_it: bool
    ) -> Attributes:
        self._enter("create")
        if (parent, name) in self._names:
            raise AlreadyExists()
        ino = self._names[parent, name] = max(number for number in self._attributes if number < 10**6) + 1
        if open_it:
            self.open_inodes.add(ino)
        return self._make(ino, mode)

    def reserve_inodes(self, count: int) -> int:
        self._enter("reserve_inodes")
        first = max(1_000_000, *self.reserved) + 1
        self.reserved.update(range(first, first + count))
        return first

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        self._enter("link")
        self._names[parent, name] = ino
        return self._load(ino)

    def unlink(self, parent: int, name: bytes) -> Attributes:
        self._enter("unlink")
        if self._names.pop((parent, name), None) is None:
            raise NotFound()
        return self._load(parent)

    def remove_known(self, parent: int, name: bytes, ino: int, removed_ns: int) -> bool:
        self._enter("remove_known")
        if not self.takes_removals:
            return False
        assert self._names.pop((parent, name)) == ino
        old = self._attributes[parent]
        self._attributes[parent] = old._replace(mtime_ns=removed_ns, ctime_ns=removed_ns)
        return True

    def rmdir(self, parent: int, name: bytes) -> Attributes:
        self._attributes.pop(self._names.get((parent, name), 0), None)
        return self.unlink(parent, name)

    def take_back(self, parent: int, name: bytes, ino: int) -> None:
        self._enter("take_back")
        if self._names.get((parent, name)) == ino and not self._load(ino).size:
            del self._names[parent, name]
            if ino not in self.open_inodes:
                del self._attributes[ino]

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self._enter("rename")
        self._names[new_parent, new_name] = self._names.pop((parent, name))

    def get_xattr(self, ino: int, name: bytes) -> bytes:
        self._enter("get_xattr")
        self._load(ino)
        raise NoAttribute(os.fsdecode(name))

    def list_xattrs(self, ino: int) -> list[bytes]:
        self._load(ino)
        return []

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        raise NotImplementedError

    def remove_xattr(self, ino: int, name: bytes) -> None:
        raise NotImplementedError

    def open(self, ino: int, writing: bool, start: int, names: Sequence[bytes]) -> Opened:
        if writing:
            self.require_writable()
        self._enter("open")
        for name in names:
            start = self._names.get((start, name), 0)
        if start != ino:
            raise StaleFile()
        self.open_inodes.add(ino)
        return Opened(self._load(ino), self._run(ino, 0, self.first_run))

    def open_and_read(self, ino: int, start: int, names: Sequence[bytes]) -> Opened:
        self.calls["open_and_read"] += 1
        opened = self.open(ino, False, start, names)
        extents = opened.map.extents
        if len(extents) != 1:
            return opened
        data = self.blocks[extents[0].block]
        return opened._replace(part=BlockPart(len(data), b"", data))

    def tell_open(self, inodes: Sequence[int], asked: int) -> None:
        self._enter("tell_open")
        self.open_inodes |= set(inodes)

    def read_small_files(self, inodes: Sequence[int]) -> list[Opened | None]:
        self._enter("read_small_files")
        return [self._small_file(ino) for ino in inodes]

    def _small_file(self, ino: int) -> Opened | None:
        run = self._run(ino, 0, 2)
        if len(run.extents) != 1:
            return None
        data = self.blocks[run.extents[0].block]
        return Opened(self._load(ino), run, BlockPart(len(data), b"", data))

    def close(self, inodes: Sequence[int]) -> None:
        self._enter("close")
        self.open_inodes -= set(inodes)

    def file_map(self, ino: int, offset: int, limit: int) -> FileMap:
        self._enter("file_map")
        return self._run(ino, offset, min(limit, self.first_run))

    def _run(self, ino: int, offset: int, limit: int) -> FileMap:
        attributes = self._load(ino)
        spans = [span for span in self._maps[ino] if span.end > offset]
        extents = [
            MappedExtent(start, end - start, record.block, place, record.length, record.digest)
            for start, end, record, place in spans[:limit]
        ]
        return FileMap(attributes.version, attributes.size, extents, len(spans) <= limit)

    def sync_metadata(self) -> None:
        self._enter("sync_metadata")

    def usage(self) -> Usage:
        self._enter("usage")
        return Usage(self.free_bytes, self.free_bytes, 0, 0)

    # blocks

    def new_block(self) -> bytes:
        with self._lock:
            self._counter += 1
            return struct.pack(">QQ", self.session, self._counter)

    def owns(self, block: bytes) -> bool:
        return block.startswith(struct.pack(">Q", self.session))

    def put_block(self, block: bytes, digest: bytes, data: bytes | bytearray, durable: bool) -> None:
        with self._lock:
            self._enter("put_block")
            assert block_digest(data) == digest
            assert block not in self.blocks
            self.blocks[block] = bytes(data)

    def read_block(self, ino: int, witness: BlockRecord, first_piece: int, piece_count: int) -> BlockPart:
        self._enter("read_block")
        data = self.blocks.get(witness.block)
        if data is None:
            raise ReadRefused("missing everywhere", {"reason": "superseded"})
        start = first_piece * PIECE_BYTES
        end = start + piece_count * PIECE_BYTES if piece_count else len(data)
        return BlockPart(len(data), piece_digests(data), data[start:end])

    def sync_blocks(self, blocks: Sequence[bytes]) -> None:
        self._enter("sync_blocks")
        if not all(block in self.blocks for block in blocks):
            raise WriteFailed("no server holds them all")
        self.durable.update(blocks)

    def abandon(self, records: Sequence[BlockRecord]) -> None:
        self._enter("abandon")
        self.abandoned += [record.block for record in records]
        for record in records:
            self.blocks.pop(record.block, None)

    def write_file(
        self, ino: int, commit: Commit, payload: Sequence[bytes | bytearray], birth: Birth | None
    ) -> Attributes:
        with self._lock:
            self._enter("write_file")
            if birth is not None:
                self._bear(ino, birth)
            for record, data in zip(commit.blocks[len(commit.blocks) - len(payload) :], payload, strict=True):
                assert block_digest(data) == record.digest
                self.blocks[record.block] = bytes(data)
                if commit.durable:
                    self.durable.add(record.block)
            attributes = self._apply(ino, commit)
            if errors := self.failures.get("answer write_file"):
                raise errors.pop(0)
            return attributes

    def _bear(self, ino: int, birth: Birth) -> None:
        place = birth.parent, birth.name
        if self._names.get(place) == ino:
            return
        if place in self._names:
            raise AlreadyExists()
        assert ino in self.reserved
        self.births.append(birth)
        self._names[place] = ino
        self._attributes[ino] = self._make(ino, birth.mode)._replace(uid=birth.uid, gid=birth.gid)
        self.open_inodes.add(ino)

    def _apply(self, ino: int, commit: Commit) -> Attributes:
        old = self._load(ino)
        commit = place_appends(commit, old.size)
        if not all(self.owns(record.block) for record in commit.blocks):
            raise SessionUnknown()
        known = {span.source.block: span.source for span in self._maps[ino]}
        known |= {record.block: record for record in commit.blocks}
        assert not commit.durable or all(record.block in self.durable for record in commit.blocks)
        contents = self._maps[ino]
        size = old.size
        if commit.cut is not None:
            contents.erase(commit.cut, 2**63)
            size = min(size, commit.cut)
        size = max(size, commit.extend_to)
        for offset, length, block, block_offset in commit.extents:
            assert offset + length <= size
            if block is None:
                contents.erase(offset, offset + length)
            else:
                contents.overlay(Span(offset, offset + length, known[block], block_offset))
        self.commits.append(commit)
        is_new = commit.cut is not None or bool(commit.extents) or size != old.size
        now = time.time_ns()
        new = changed(old, commit.changes, now)
        mtime_ns = commit.changes.mtime_ns or now
        self._attributes[ino] = new._replace(size=size, version=old.version + is_new, mtime_ns=mtime_ns)
        return self._attributes[ino]

    # permission

    def is_alone(self) -> bool:
        return self.alone

    def require_room(self) -> None:
        if self.full:
            raise NoSpace("no room is left on data server 2")

    def require_writable(self) -> None:
        if not self.writable:
            raise WriteRefused("fewer than Qw data servers are up")


def file_system(
    server: FakeServer,
    dirty_bytes: int = 64 * 1024 * 1024,
    age_seconds: float = 30,
    patience: Patience | None = None,
) -> FileSystem:
    """Return a file system over the fake; its chores run only if the test begins them."""
    grant = Grant()
    if server.alone:
        grant.extend(seconds_passed(), 3600.0)
    opens = OpenInodes(server)
    return FileSystem(server, server, server, opens, dirty_bytes, age_seconds, patience, grant)
