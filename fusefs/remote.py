"""The ports over the wire: adds the session, tickets and deadlines to each call. No decisions of its own.

A call that finds its session gone was not carried out; it is made again once under a new session, but for
`write_file`, whose blocks went with the old one, and for what changes something if locks went with it.
While servers are away, Patience decides. Safe in any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from fusefs.new_files import attributes_of, new_file
from fusefs.patience import Patience
from fusefs.session import INODES_A_CALL, Session, runs
from wire.blocking import BlockingClient
from wire.config import Deadlines
from wire.digest import Buffer
from wire.errors import LocksLost, QuorumfsError, SessionUnknown
from wire.messages import (
    ROOT_INODE,
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
    Ticket,
    Usage,
)
from wire.methods import MediatorMethods, NamespaceMethods
from wire.ring import NewFile, Removal

P = ParamSpec("P")
R = TypeVar("R")

BLOCKS_A_CALL = 4096
"""A call names no more blocks: a message is bounded, and so is what one deadline is for."""


class RemoteNamespace:
    """NamespacePort over a BlockingClient."""

    def __init__(
        self, client: BlockingClient, session: Session, deadlines: Deadlines, patience: Patience
    ) -> None:
        self._client, self._session, self._patience = client, session, patience
        self._seconds = deadlines.metadata_seconds

    def _ask(self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        self._session.settle()
        return self._call(method, *args, **kwargs)

    def _call(self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._patience.persist(
            lambda: self._client.call(self._patience.left(self._seconds), method, *args, **kwargs)
        )

    def _renew(self, dead: int) -> None:
        self._patience.persist(lambda: self._session.renew_after(dead))

    def _require_locks(self, losses: int) -> None:
        """Raise LocksLost if a session has died with locks since there were so many such losses."""
        if self._session.losses != losses:
            raise LocksLost("this may have been asked for under a lock that is gone")

    def _mutate(
        self, method: Callable[Concatenate[Any, Ticket, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        losses, session = self._session.losses, self._session.number
        try:
            return self._session.mutate(lambda ticket: self._call(method, ticket, *args, **kwargs))
        except SessionUnknown as error:
            self._renew(session)
            if error.resent:
                raise  # the dead session may have carried it out: a second time could undo others' work
            self._require_locks(losses)
        return self._session.mutate(lambda ticket: self._call(method, ticket, *args, **kwargs))

    def _change_names(
        self, method: Callable[Concatenate[Any, Ticket, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        with self._session.ring.changing():
            return self._mutate(method, *args, **kwargs)

    def resolve(self, start: int, names: Sequence[bytes]) -> list[Attributes]:
        return self._ask(NamespaceMethods.resolve, start, list(names))

    def getattr(self, ino: int) -> Attributes:
        return self._ask(NamespaceMethods.getattr, ino)

    def setattr(self, ino: int, changes: AttributeChanges) -> Attributes:
        return self._mutate(NamespaceMethods.setattr, ino, changes)

    def read_directory(self, ino: int, after: bytes, limit: int) -> DirectoryPage:
        return self._ask(NamespaceMethods.read_directory, ino, after, limit)

    def parent(self, ino: int) -> Attributes:
        return self._ask(NamespaceMethods.parent, ino)

    def read_link(self, ino: int) -> bytes:
        return self._ask(NamespaceMethods.read_link, ino)

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int, target: bytes, open_it: bool
    ) -> Attributes:
        return self._change_names(
            NamespaceMethods.create, parent, name, mode, uid, gid, rdev, target, open_it
        )

    def reserve_inodes(self, count: int) -> int:
        return self._in_any_session(
            lambda session: self._ask(NamespaceMethods.reserve_inodes, session, count)
        )

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        return self._change_names(NamespaceMethods.link, ino, parent, name)

    def unlink(self, parent: int, name: bytes) -> Attributes:
        return self._change_names(NamespaceMethods.unlink, parent, name)

    def remove_known(self, parent: int, name: bytes, ino: int, removed_ns: int) -> bool:
        ring = self._session.ring
        if not ring.is_run():
            return False
        return ring.tell(Removal(parent, ino, removed_ns, name), lambda: self.getattr(ROOT_INODE))

    def take_back(self, parent: int, name: bytes, ino: int) -> None:
        self._change_names(NamespaceMethods.take_back, parent, name, ino)

    def rmdir(self, parent: int, name: bytes) -> Attributes:
        return self._change_names(NamespaceMethods.rmdir, parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self._change_names(NamespaceMethods.rename, parent, name, new_parent, new_name, flags)

    def get_xattr(self, ino: int, name: bytes) -> bytes:
        return self._ask(NamespaceMethods.get_xattr, ino, name)

    def list_xattrs(self, ino: int) -> list[bytes]:
        return self._ask(NamespaceMethods.list_xattrs, ino)

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        self._mutate(NamespaceMethods.set_xattr, ino, name, value, flags)

    def remove_xattr(self, ino: int, name: bytes) -> None:
        self._mutate(NamespaceMethods.remove_xattr, ino, name)

    def open(self, ino: int, writing: bool, start: int, names: Sequence[bytes]) -> Opened:
        losses, walk = self._session.losses, list(names)
        opened = self._in_any_session(
            lambda session: self._ask(
                NamespaceMethods.open, session, ino, writing, start, walk, self._session.closes
            )
        )
        if writing:  # it is the first step of a change, which may cut off what the file has
            self._require_locks(losses)
        return opened

    def open_and_read(self, ino: int, start: int, names: Sequence[bytes]) -> Opened:
        walk = list(names)
        return self._in_any_session(
            lambda session: self._ask(
                MediatorMethods.open_and_read, session, ino, start, walk, self._session.closes
            )
        )

    def tell_open(self, inodes: Sequence[int], asked: int) -> None:
        closes = self._session.closes
        *first, last = [*runs(inodes, INODES_A_CALL)] or [[]]
        for opened in first:
            self._tell_open(opened, 0, closes, waits=not asked)
        self._tell_open(last, asked, closes, waits=not asked)

    def _tell_open(self, opened: list[int], asked: int, closes: int, waits: bool) -> None:
        if waits:
            self._in_any_session(
                lambda session: self._ask(NamespaceMethods.tell_open, session, opened, asked, closes)
            )
        else:  # a heartbeat, which must not wait for servers
            self._client.call_once(
                self._seconds, NamespaceMethods.tell_open, self._session.number, opened, asked, closes
            )

    def read_small_files(self, inodes: Sequence[int]) -> Sequence[Opened | None]:
        self._session.settle()
        return self._client.call_once(self._seconds, MediatorMethods.read_small_files, list(inodes))

    def _in_any_session(self, ask: Callable[[int], R]) -> R:
        """Call for the session; if it is gone, for a new one."""
        session = self._session.number
        try:
            return ask(session)
        except SessionUnknown:
            self._renew(session)
        return ask(self._session.number)

    def close(self, inodes: Sequence[int]) -> None:
        number = self._session.take_close_number()
        self._ask(NamespaceMethods.close, self._session.number, list(inodes), number)

    def file_map(self, ino: int, offset: int, limit: int) -> FileMap:
        return self._ask(NamespaceMethods.file_map, ino, offset, limit)

    def set_lock(self, lock: FileLock) -> LockGrant:
        return self._in_session(NamespaceMethods.set_lock, lock)

    def unlock(self, lock: FileLock) -> int:
        return self._in_session(NamespaceMethods.unlock, lock)

    def _in_session(self, method: Callable[[Any, Ticket, FileLock, int], R], lock: FileLock) -> R:
        """Locks do not outlive their session: a call is not made again by itself under a new one."""
        session = self._session.number
        try:
            return self._session.mutate(lambda ticket: self._call(method, ticket, lock, self._session.epoch))
        except SessionUnknown:
            self._renew(session)
            raise

    def get_lock(self, lock: FileLock) -> LockHolder | None:
        found = self._in_any_session(lambda session: self._ask(NamespaceMethods.get_lock, session, lock))
        if found is None or found.session == self._session.number:
            return found
        return found._replace(lock=found.lock._replace(pid=0))

    def wait_lock(self, lock: FileLock) -> None:
        self._ask(NamespaceMethods.wait_lock, self._session.number, lock)

    def confirm_session(self) -> None:
        self._patience.persist(self._session.confirm)

    def sync_metadata(self) -> None:
        self._ask(NamespaceMethods.sync_metadata)

    def usage(self) -> Usage:
        return self._ask(MediatorMethods.usage)


class RemoteBlocks:
    """BlockPort over a BlockingClient.

    What is written has its deadline, however long the request has taken: there may be much of it.
    """

    def __init__(
        self, client: BlockingClient, session: Session, deadlines: Deadlines, patience: Patience
    ) -> None:
        self._client, self._session, self._deadlines = client, session, deadlines
        self._patience = patience

    def _ask(
        self,
        seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        return self._patience.persist(lambda: self._client.call(seconds, method, *args, **kwargs))

    def _put(self, method: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make a call of which nobody can tell how long it takes; those after it have their time then."""
        result = self._ask(self._deadlines.write_seconds, method, *args, **kwargs)
        self._patience.go_on(self._deadlines.metadata_seconds)
        return result

    def new_block(self) -> bytes:
        return self._session.new_block()

    def owns(self, block: bytes) -> bool:
        return self._session.owns(block)

    def put_block(self, block: bytes, digest: bytes, data: bytes | bytearray, durable: bool) -> None:
        self._put(MediatorMethods.put_block, block, digest, data, durable)

    def read_block(self, ino: int, witness: BlockRecord, first_piece: int, piece_count: int) -> BlockPart:
        seconds = self._patience.left(self._deadlines.read_seconds)
        return self._ask(seconds, MediatorMethods.read_block, ino, witness, first_piece, piece_count)

    def sync_blocks(self, blocks: Sequence[bytes]) -> None:
        for some in runs(blocks, BLOCKS_A_CALL):
            self._put(MediatorMethods.sync_blocks, some)

    def abandon(self, records: Sequence[BlockRecord]) -> None:
        session, seconds = self._session.number, self._deadlines.metadata_seconds
        for some in runs([record for record in records if self.owns(record.block)], BLOCKS_A_CALL):
            self._client.call(seconds, NamespaceMethods.abandon_blocks, session, some)

    def write_file(
        self, ino: int, commit: Commit, payload: Sequence[bytes | bytearray], birth: Birth | None
    ) -> Attributes:
        session = self._session.number
        try:
            return self._session.mutate(lambda ticket: self._write(ticket, ino, commit, list(payload), birth))
        except SessionUnknown:
            self._patience.persist(lambda: self._session.renew_after(session))
            raise

    def _write(
        self, ticket: Ticket, ino: int, commit: Commit, payload: list[Buffer], birth: Birth | None
    ) -> Attributes:
        method = MediatorMethods.write_file
        file = None if birth is None else new_file(ticket, ino, commit, birth, 0)
        if file is None or not self._session.ring.is_run():
            return _known(self._put(method, ticket, ino, commit, payload, birth))
        if payload:
            made = self._put(method, ticket, ino, commit, payload, birth, True)
            if made is not None:
                return made
        return self._tell(
            file._replace(told_ns=time.time_ns()),
            lambda: _known(self._put(method, ticket, ino, commit, [], birth)),
        )

    def _tell(self, file: NewFile, commit: Callable[[], Attributes]) -> Attributes:
        """Tell of a new file whose block is put, or commit it; who is in doubt makes the very call."""
        answers: list[Attributes] = []

        def ask() -> None:
            try:
                answers.append(commit())
            except QuorumfsError as error:
                error.resent = True  # what was told may have been carried out
                raise

        if self._session.ring.tell(file, ask) and not answers:
            return attributes_of(file)
        return answers[0] if answers else commit()


def _known(attributes: Attributes | None) -> Attributes:
    assert attributes is not None, "who does not tell of a file by itself is answered"
    return attributes
