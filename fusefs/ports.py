"""What the file system needs of a server, as protocols: met by fusefs.remote, in tests by fakes.

Sessions, tickets and deadlines are not seen from here. Every method may be called from any thread,
blocks until it has its answer or its deadline has passed, and raises errors of wire.errors only.
The meaning of each method is that of the method of the same name in wire.methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wire.messages import (
    AttributeChanges,
    Attributes,
    Birth,
    BlockPart,
    BlockRecord,
    Commit,
    DirectoryPage,
    FileLock,
    FileMap,
    LockGrant,
    LockHolder,
    Opened,
    Usage,
)


class NamespacePort(Protocol):
    """Files and directories by inode number."""

    def resolve(self, start: int, names: Sequence[bytes]) -> list[Attributes]: ...

    def getattr(self, ino: int) -> Attributes: ...

    def setattr(self, ino: int, changes: AttributeChanges) -> Attributes: ...

    def read_directory(self, ino: int, after: bytes, limit: int) -> DirectoryPage: ...

    def parent(self, ino: int) -> Attributes: ...
    def read_link(self, ino: int) -> bytes: ...

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int, target: bytes, open_it: bool
    ) -> Attributes: ...

    def reserve_inodes(self, count: int) -> int: ...

    def link(self, ino: int, parent: int, name: bytes) -> Attributes: ...

    def unlink(self, parent: int, name: bytes) -> Attributes: ...

    def remove_known(self, parent: int, name: bytes, ino: int, removed_ns: int) -> bool:
        """Remove, without a call, a name that is certain to be of this inode, no directory.

        False: it takes a call. Raises QuorumfsError: nobody knows whether it is removed.
        """
        ...

    def take_back(self, parent: int, name: bytes, ino: int) -> None: ...

    def rmdir(self, parent: int, name: bytes) -> Attributes: ...

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None: ...

    def get_xattr(self, ino: int, name: bytes) -> bytes: ...

    def list_xattrs(self, ino: int) -> list[bytes]: ...

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None: ...

    def remove_xattr(self, ino: int, name: bytes) -> None: ...

    def open(self, ino: int, writing: bool, start: int, names: Sequence[bytes]) -> Opened: ...

    def open_and_read(self, ino: int, start: int, names: Sequence[bytes]) -> Opened: ...

    def tell_open(self, inodes: Sequence[int], asked: int) -> None: ...

    def read_small_files(self, inodes: Sequence[int]) -> Sequence[Opened | None]:
        """As MediatorMethods.read_small_files, for what may be wanted soon: it fails rather than waits."""
        ...

    def close(self, inodes: Sequence[int]) -> None: ...

    def file_map(self, ino: int, offset: int, limit: int) -> FileMap: ...

    def set_lock(self, lock: FileLock) -> LockGrant:
        """As NamespaceMethods.set_lock; SessionUnknown means that a new session was begun meanwhile.

        StaleEpoch means that the metadata server was restarted meanwhile, and was told what is held here.
        """
        ...

    def unlock(self, lock: FileLock) -> int:
        """As NamespaceMethods.unlock; SessionUnknown and StaleEpoch as above."""
        ...

    def get_lock(self, lock: FileLock) -> LockHolder | None:
        """As NamespaceMethods.get_lock; the pid is 0 if the holder is of another session."""
        ...

    def wait_lock(self, lock: FileLock) -> None: ...

    def confirm_session(self) -> None:
        """Return if the session lives for certain; one that is found dead is begun anew.

        Raises QuorumfsError when nobody can tell.
        """
        ...

    def sync_metadata(self) -> None: ...

    def usage(self) -> Usage: ...


class BlockPort(Protocol):
    """Blocks by quorum."""

    def new_block(self) -> bytes:
        """Return a block id that was never used, of the current session."""
        ...

    def owns(self, block: bytes) -> bool:
        """Tell whether a block id is of the current session: blocks of a dead one are garbage."""
        ...

    def put_block(self, block: bytes, digest: bytes, data: bytes | bytearray, durable: bool) -> None: ...

    def read_block(self, ino: int, witness: BlockRecord, first_piece: int, piece_count: int) -> BlockPart: ...

    def sync_blocks(self, blocks: Sequence[bytes]) -> None: ...

    def abandon(self, records: Sequence[BlockRecord]) -> None:
        """Say that no commit will ever name these blocks; those of a session that has ended are left out."""
        ...

    def write_file(
        self, ino: int, commit: Commit, payload: Sequence[bytes | bytearray], birth: Birth | None
    ) -> Attributes:
        """As MediatorMethods.write_file; SessionUnknown means that a new session was begun meanwhile.

        The blocks of the dead session are garbage then: they must be put again under new ids.
        """
        ...


class WritePermission(Protocol):
    """Whether writes are possible now, as the heartbeats tell."""

    def require_writable(self) -> None:
        """Raise WriteRefused, with the reason, while fewer than Qw data servers are up."""
        ...

    def require_room(self) -> None:
        """Raise NoSpace, with the reason, while fewer than Qw data servers have room for new bytes."""
        ...

    def is_alone(self) -> bool:
        """Tell whether this mount is certainly the only one, and will be for a while."""
        ...
