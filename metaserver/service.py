"""The RPC surface of the metadata server: one function a method, each one transaction. No logic.

The methods are those of wire.methods (NamespaceMethods, BookkeepingMethods, CommonMethods), and are
documented there. All run in the event loop's thread; those that must wait for the disk are async.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from metaserver.bookkeeping import Bookkeeping
from metaserver.checking import Checking
from metaserver.compaction import Compaction
from metaserver.contents import FIRST_RUN_EXTENTS, Contents
from metaserver.copying import Copying
from metaserver.grants import Grants
from metaserver.inodes import Inodes
from metaserver.lag import LagList
from metaserver.ledger import Ledger
from metaserver.locks import Locks
from metaserver.log import LogSync
from metaserver.milestones import Milestones
from metaserver.namespace import Namespace
from metaserver.page_check import PageCheck
from metaserver.reaper import Reaper
from metaserver.rings import Rings
from metaserver.room import Room
from metaserver.sessions import Sessions
from metaserver.store import Store, check_ticket
from metaserver.told import ToldChanges
from metaserver.xattrs import ExtendedAttributes
from wire.errors import GracePeriod, InvalidArgument, NoSpace, SequenceError, SessionUnknown, StaleEpoch
from wire.messages import (
    AttributeChanges,
    Attributes,
    Birth,
    BlockRecord,
    Commit,
    DirectoryPage,
    FileLock,
    FileMap,
    Identity,
    Lag,
    LagCount,
    LockGrant,
    LockHolder,
    Milestone,
    Opened,
    RecentBlocks,
    Reference,
    Renewal,
    SessionInfo,
    SparsePage,
    Ticket,
)

SESSIONS_SHOWN = 100
LOCKS_SHOWN = 100
NUMBERS_MAX = 4096
WAIT_SECONDS = 2.0
"""One call waits for a lock so long at most; shorter than a stopping server waits for its calls."""


class MetaService:
    """Everything that one metadata server offers."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        log: LogSync,
        cluster: str,
        reserve_bytes: int = 0,
        grants: Grants | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compaction = Compaction(store, clock)
        self._ledger = Ledger(store.path.parent)
        self._room = Room(store, reserve_bytes)
        inodes = Inodes(store, sessions)
        contents = Contents(store, inodes)
        self.identified = Identity("metaserver", cluster, 0, sessions.epoch)
        self.reaper = Reaper(store, sessions, contents)
        self.checking = Checking(store, sessions)
        self.page_check = PageCheck(store.path)
        self.copying = Copying(store, reserve_bytes)
        self.milestones = Milestones(store)
        self._store = store
        self._sessions = sessions
        self._grants = grants or Grants(sessions, 0.0, 0.0)
        self._log = log
        self._inodes = inodes
        self._contents = contents
        self._namespace = Namespace(store, inodes, contents, sessions)
        self._xattrs = ExtendedAttributes(store, inodes)
        self._bookkeeping = Bookkeeping(store, sessions)
        self._lag = LagList(store, contents)
        told = ToldChanges(
            store, self._namespace, contents, sessions, self._lag, self._room, self.reaper.remove_soon
        )
        self.rings = Rings(store, told)
        self._locks = Locks(in_grace=sessions.may_reclaim)
        sessions.on_end(self._locks.drop_session)
        sessions.on_end(self.rings.session_ended)
        self._started = time.monotonic()

    # CommonMethods

    def identity(self) -> Identity:
        return self.identified

    def status(self) -> dict[str, Any]:
        return {
            "kind": "metaserver",
            "cluster": self.identified.cluster,
            "epoch": self.identified.epoch,
            "up_seconds": round(time.monotonic() - self._started, 3),
            "database": os.fsencode(self._store.path).decode(errors="backslashreplace"),
            "pages": self.page_check.describe(),
            "disk_failure": self._store.disk_failure,
            "displaced": self._store.files.displaced,
            "no_room": self._room.refusal(),
            "found_older_ns": self._store.read(self._bookkeeping.found_older_ns),
            "counts": self.counts(),
            "sessions": self._store.read(self._sessions.describe, SESSIONS_SHOWN),
            "alone_seconds_left": self._grants.describe(),
            "locks": self._locks.describe(LOCKS_SHOWN),
        }

    # NamespaceMethods: sessions

    async def open_session(self, name: str) -> SessionInfo:
        async with self._grants.joining():
            self.rings.end()
            info = self._sessions.open(name)
        await self._log.sync()  # a number that was given must not be given again, even after a power loss
        return info._replace(ring=self.rings.place(info.session))

    def close_session(self, session: int) -> None:
        self._remove_orphans_of(self._sessions.end(session))

    def reclaim(
        self,
        session: int,
        epoch: int,
        inodes: list[int],
        locks: list[FileLock] | None = None,
        closes: int = 0,
    ) -> None:
        self._require_epoch(epoch)
        self.rings.take_in()  # of the files in there the session says itself which it has open
        first = not self._sessions.has_reclaimed(session)
        if first and locks:
            if not self._sessions.is_awaited(session):
                raise SessionUnknown(f"session {session}: others may have had its locks meanwhile")
            if not self._locks.reclaim(session, locks):
                raise SessionUnknown(f"session {session}: others hold its locks by now")
        self._sessions.reclaim(session, inodes, closes)

    # NamespaceMethods: locks

    def set_lock(self, ticket: Ticket, lock: FileLock, epoch: int) -> LockGrant:
        check_ticket(ticket)
        self._require_reclaimed(ticket.session)
        self._require_epoch(epoch)
        attributes = self._store.read(self._inodes.load, lock.ino)
        self._locks.set(ticket, lock)
        return LockGrant(self._sessions.epoch, attributes)

    def unlock(self, ticket: Ticket, lock: FileLock, epoch: int) -> int:
        check_ticket(ticket)
        self._require_reclaimed(ticket.session)
        self._require_epoch(epoch)
        self._locks.unset(ticket, lock)
        return self._sessions.epoch

    def _require_reclaimed(self, session: int) -> None:
        """Raise GracePeriod: what a session reclaims later must not undo what it was answered before."""
        if not self._sessions.has_reclaimed(session):
            raise GracePeriod(f"session {session} has not said yet what it holds")

    def _require_epoch(self, epoch: int) -> None:
        """Raise StaleEpoch: a late copy must not undo what was reclaimed or done since."""
        if epoch != self._sessions.epoch:
            raise StaleEpoch("the metadata server was restarted since this call was made")

    def get_lock(self, session: int, lock: FileLock) -> LockHolder | None:
        self._sessions.require(session)
        found = self._locks.holder(session, lock)
        if found is None:
            return None
        _, owner, start, last, exclusive, pid = found
        there = FileLock(lock.ino, lock.flock, owner, start, last, exclusive, pid)
        return LockHolder(found.session, self._sessions.name(found.session), there)

    async def wait_lock(self, session: int, lock: FileLock) -> None:
        self._sessions.require(session)
        await self._locks.wait(session, lock, WAIT_SECONDS)

    # NamespaceMethods: reading

    def resolve(self, start: int, names: list[bytes]) -> list[Attributes]:
        return self._store.read(self._namespace.resolve, start, names)

    def getattr(self, ino: int) -> Attributes:
        return self._store.read(self._inodes.load, ino)

    def read_directory(self, ino: int, after: bytes, limit: int) -> DirectoryPage:
        return self._store.read(self._namespace.read_directory, ino, after, limit)

    def parent(self, ino: int) -> Attributes:
        return self._store.read(self._namespace.parent, ino)

    def read_link(self, ino: int) -> bytes:
        return self._store.read(self._namespace.read_link, ino)

    def get_xattr(self, ino: int, name: bytes) -> bytes:
        return self._store.read(self._xattrs.get, ino, name)

    def list_xattrs(self, ino: int) -> list[bytes]:
        return self._store.read(self._xattrs.names, ino)

    def file_map(self, ino: int, offset: int, limit: int) -> FileMap:
        return self._store.read(self._contents.map, ino, offset, limit)

    # NamespaceMethods: changing

    def setattr(self, ticket: Ticket, ino: int, changes: AttributeChanges) -> Attributes:
        return self._store.once(ticket, self._namespace.setattr, ino, changes)

    def reserve_inodes(self, session: int, count: int) -> int:
        self._sessions.require(session)
        if not 1 <= count <= NUMBERS_MAX:
            raise InvalidArgument(f"1 to {NUMBERS_MAX} numbers are reserved by one call")
        return self._store.change(self._store.take_inode_numbers, count)

    def create(
        self,
        ticket: Ticket,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes,
        open_it: bool,
    ) -> Attributes:
        self._require_room(ticket)
        made = self._store.once(ticket, self._namespace.create, parent, name, mode, uid, gid, rdev, target)
        if not isinstance(made, Attributes):
            raise SequenceError("the ticket is of another call, which was answered already")
        if open_it:
            self._sessions.hold(ticket.session, made.ino)
        return made

    def link(self, ticket: Ticket, ino: int, parent: int, name: bytes) -> Attributes:
        self._require_room(ticket)
        return self._store.once(ticket, self._namespace.link, ino, parent, name)

    def unlink(self, ticket: Ticket, parent: int, name: bytes) -> Attributes:
        after = self._store.once(ticket, self._namespace.unlink, parent, name)
        self.reaper.remove_soon()
        self.rings.expect(ticket.session)
        return after

    def take_back(self, ticket: Ticket, parent: int, name: bytes, ino: int) -> None:
        self._store.once(ticket, self._namespace.take_back, parent, name, ino)
        self.reaper.remove_soon()

    def rmdir(self, ticket: Ticket, parent: int, name: bytes) -> Attributes:
        return self._store.once(ticket, self._namespace.rmdir, parent, name)

    def rename(
        self, ticket: Ticket, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        self._store.once(ticket, self._namespace.rename, parent, name, new_parent, new_name, flags)
        self.reaper.remove_soon()

    def _require_room(self, ticket: Ticket) -> None:
        """Refuse what makes the database grow while the disk is full, but not a call that was carried out."""
        try:
            self._room.require()
        except NoSpace:
            if not self._store.read(self._store.is_answered, ticket):
                raise

    def set_xattr(self, ticket: Ticket, ino: int, name: bytes, value: bytes, flags: int) -> None:
        self._require_room(ticket)
        self._store.once(ticket, self._xattrs.set, ino, name, value, flags)

    def remove_xattr(self, ticket: Ticket, ino: int, name: bytes) -> None:
        self._store.once(ticket, self._xattrs.remove, ino, name)

    # NamespaceMethods: open files

    def open(
        self,
        session: int,
        ino: int,
        writing: bool,
        start: int = 0,
        names: list[bytes] | None = None,
        closes: int = 0,
    ) -> Opened:
        if names:
            found = self._store.read(self._namespace.arrive, start, names, ino)
        else:
            found = self._store.read(self._inodes.load, ino)
        self._sessions.hold(session, ino, closes)
        return Opened(found, self._store.read(self._contents.map_of, found, 0, FIRST_RUN_EXTENTS))

    def tell_open(self, session: int, inodes: list[int], asked: int = 0, closes: int = 0) -> None:
        self._sessions.tell_open(session, inodes, asked, closes)

    def close(self, session: int, inodes: list[int], number: int) -> None:
        self._sessions.let_go(session, inodes, number)
        self._remove_orphans_of(inodes)

    def _remove_orphans_of(self, inodes: list[int] | set[int]) -> None:
        for ino in inodes:
            self.reaper.remove_if_orphan(ino)

    def settle(self, ticket: Ticket) -> None:
        self._store.once(ticket, _nothing)
        self._locks.settle(ticket)

    async def sync_metadata(self) -> None:
        self.rings.take_in()
        await self._log.sync()

    def abandon_blocks(self, session: int, blocks: list[BlockRecord]) -> None:
        self._sessions.renew(session)
        self._store.change(self._bookkeeping.abandon, session, blocks)

    # BookkeepingMethods

    def renew(self, session: int) -> int:
        return self._sessions.renew(session)

    def renew_alone(self, session: int) -> Renewal:
        epoch = self._sessions.renew(session)
        if not self.rings.are_taken_in():
            return Renewal(epoch, 0, self._sessions.asks_opens(session))
        alone_ms = int(self._grants.extend(session) * 1000)
        term = self.rings.begin(session) if alone_ms and not self._room.refusal() else 0
        return Renewal(epoch, alone_ms, self._sessions.asks_opens(session), term)

    def commit(
        self,
        ticket: Ticket,
        ino: int,
        commit: Commit,
        lag: list[Lag] | None = None,
        birth: Birth | None = None,
    ) -> Attributes | Awaitable[Attributes]:
        if commit.blocks or birth:
            self._require_room(ticket)
        attributes = self._store.once(ticket, self._commit, ino, commit, lag, birth)
        if birth:
            self._sessions.hold(ticket.session, ino)
            self.rings.expect(ticket.session)
        self._lag.remember(commit.blocks)
        return self._when_on_disk(attributes) if commit.durable else attributes

    def _commit(
        self, session: int, ino: int, commit: Commit, lag: list[Lag] | None, birth: Birth | None
    ) -> Attributes:
        born = None if birth is None else self._namespace.bear(session, ino, birth)
        now_ns = None if born is None else born.ctime_ns  # which its directory has
        if lag:
            return self._lag.commit(session, ino, commit, lag, born, now_ns)
        return self._contents.commit(session, ino, commit, born, now_ns)

    async def _when_on_disk(self, attributes: Attributes) -> Attributes:
        await self._log.sync()
        return attributes

    def blocks(self, after: bytes, limit: int) -> list[BlockRecord]:
        return self._store.read(self._bookkeeping.blocks, after, limit)

    async def note_lag(self, lag: list[Lag]) -> None:
        self._store.change(self._lag.note, lag)
        await self._log.sync()  # nobody else remembers it from now on

    def clear_lag(self, server: int, blocks: list[bytes]) -> None:
        self._store.change(self._lag.clear, server, blocks)

    def lagging(self, server: int, limit: int, after: bytes = b"") -> list[BlockRecord]:
        return self._store.read(self._lag.of_server, server, limit, after)

    def lacking_servers(self, blocks: list[bytes]) -> list[int]:
        return self._store.read(self._lag.lacking_servers, blocks)

    def lag_counts(self) -> list[LagCount]:
        return self._store.read(self._lag.counts)

    def blocks_at_risk(self, spared: int) -> int:
        return self._store.read(self._lag.blocks_at_risk, spared)

    def recent_blocks(self) -> RecentBlocks:
        return self._store.read(self._lag.recent)

    def vouch_recent(self) -> None:
        self._lag.vouch()

    async def take_milestone(self) -> Milestone:
        taken = self._store.read(self.milestones.take)
        await self._log.sync()  # a power loss must not leave less than data servers have kept
        return taken

    def compare_milestones(self, kept: list[Milestone], enough: bool) -> int:
        self._store.read(self.milestones.compare, kept, enough=enough)
        return self._store.read(self._bookkeeping.found_older_ns)

    def small_files(self, inodes: list[int]) -> list[Opened | None]:
        return self._store.read(self._contents.small_files, inodes)

    def witnesses(self, blocks: list[bytes]) -> list[BlockRecord | None]:
        return self._store.read(self._bookkeeping.witnesses, blocks)

    async def garbage(self, limit: int, min_age_ms: int, after: bytes = b"") -> list[bytes]:
        return await self._for_ever(self._store.read(self._bookkeeping.garbage, limit, min_age_ms, after))

    async def _for_ever(self, blocks: list[bytes]) -> list[bytes]:
        """Return blocks that may be deleted, once a power loss cannot bring back what needed them."""
        if blocks:
            await self._log.sync()
        return blocks

    def forget(self, blocks: list[bytes]) -> None:
        self._store.change(self._bookkeeping.forget, blocks)

    async def collectable(self, blocks: list[bytes]) -> list[bytes]:
        return await self._for_ever(self._store.read(self._bookkeeping.collectable, blocks))

    def sparse_blocks(self, after: bytes, limit: int, min_age_ms: int) -> SparsePage:
        return self._store.read(self._compaction.sparse, after, limit, min_age_ms)

    def exchange_block(self, session: int, old: bytes, references: list[Reference], new: BlockRecord) -> bool:
        self._sessions.renew(session)
        done = self._store.change(self._compaction.exchange, session, old, references, new)
        if done:
            self._lag.remember([new])
        return done

    def referenced_bytes(self) -> int:
        return self._store.read(self._bookkeeping.referenced_bytes)

    def note_repairs(self, entries: list[dict[str, Any]]) -> None:
        self._ledger.append(entries)

    def ledger(self, limit: int) -> list[dict[str, Any]]:
        return self._ledger.newest(limit)

    def files_of_block(self, block: bytes) -> list[int]:
        return self._store.read(self._bookkeeping.files_of_block, block)

    def paths_of(self, ino: int, limit: int) -> list[bytes]:
        return self._store.read(self._namespace.paths_of, ino, limit)

    def counts(self) -> dict[str, Any]:
        return {**self._store.read(self._bookkeeping.counts), "changes": self.copying.changes()}

    def answered(self, ticket: Ticket) -> bool:
        return self._store.read(self._store.is_answered, ticket)

    def begin_check(self) -> int:
        return self.checking.begin()

    def check_progress(self, check: int) -> dict[str, Any]:
        return self.checking.progress(check)

    def begin_copy(self) -> int:
        return self._store.read(self.copying.begin)

    def copy_progress(self, copy: int) -> dict[str, Any]:
        return self.copying.progress(copy)

    async def read_copy(self, copy: int, offset: int, length: int) -> bytes:
        return await self.copying.read(copy, offset, length)

    def drop_copy(self, copy: int) -> None:
        self.copying.drop(copy)


def _nothing(_session: int) -> None:
    """What a call does that only has to be the newest of its slot."""
