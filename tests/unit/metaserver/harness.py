"""A metadata server without a process: the real service on a real database, clocks turned by hand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from metaserver import pages
from metaserver.check import Finding, check
from metaserver.log import LogSync
from metaserver.service import MetaService
from metaserver.sessions import Sessions
from metaserver.store import Store
from metaserver.sums import sums_file
from wire.messages import (
    AttributeChanges,
    Attributes,
    BlockRecord,
    Commit,
    Extent,
    FileLock,
    LockGrant,
    Ticket,
)

T = TypeVar("T")

FILE = 0o100644
DIRECTORY = 0o040755
LINK = 0o120777
LEASE_SECONDS = 30.0


class Harness:
    """One metadata server and one session of it; `restart` begins anew on the same database."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "meta.sqlite"
        self.seconds = 1000.0
        self.now_ns = 1_000_000_000
        self._runner = asyncio.Runner()
        self.start()
        self.session = self.open_session()
        self._sequence = 0
        self._block = self._closes = 0

    def start(self, older_than: int = 0, *, compared: bool = True) -> None:
        """Begin on the database as it is; with `compared`, data servers know of nothing newer."""
        self.store = Store(self.path, "test", older_than=older_than, now_ns=self._tick)
        self.log = LogSync(self.path, self.store.changed_rows, self.store.log_mark)
        self.sessions = Sessions(self.store, LEASE_SECONDS, self._clock)
        self.service = MetaService(self.store, self.sessions, self.log, "test", clock=self._clock)
        if compared:
            self.service.compare_milestones([], enough=True)

    def _clock(self) -> float:
        return self.seconds

    def _tick(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def wait(self, coroutine: Coroutine[Any, Any, T] | T) -> T:
        """Return a result, of a coroutine when it has run to its end."""
        return self._runner.run(coroutine) if asyncio.iscoroutine(coroutine) else coroutine

    def open_session(self) -> int:
        return self.wait(self.service.open_session("test")).session

    def reclaim(self, session: int, inodes: list[int], locks: list[FileLock] | None = None) -> None:
        self.service.reclaim(session, self.sessions.epoch, inodes, locks)

    def close_files(self, session: int, inodes: list[int]) -> None:
        self._closes += 1
        self.service.close(session, inodes, self._closes)

    def set_lock(self, ticket: Ticket, lock: FileLock) -> LockGrant:
        return self.service.set_lock(ticket, lock, self.sessions.epoch)

    def unlock(self, ticket: Ticket, lock: FileLock) -> int:
        return self.service.unlock(ticket, lock, self.sessions.epoch)

    def restart(self, database: bytes | None = None) -> None:
        """Stop and start; with `database`, on an older state of it."""
        self.stop()
        if database is not None:
            self.put_back(database)
        self.start()

    def put_back(self, database: bytes) -> None:
        """While it is stopped, let an older state be the database, as `restore` does: without its sums."""
        self.path.write_bytes(database)
        sums_file(self.path).unlink()

    def stop(self) -> None:
        self.service.page_check.close()
        self.service.copying.close()
        self.log.close()
        self.store.close()

    def close(self) -> None:
        """Stop, after checking that everything holds that must."""
        try:
            assert self.findings() == []
            assert self.store.totals == self.store._count(), "the totals are not those of the tables"
        finally:
            self.stop()
            self._runner.close()

    def findings(self) -> list[Finding]:
        connection = pages.connect(self.path)
        try:
            return check(connection)
        finally:
            connection.close()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection whose changes are one transaction, behind the server's back."""
        self.store.end_reading()
        with closing(pages.connect(self.path)) as connection, connection:
            yield connection

    def ticket(self, session: int | None = None) -> Ticket:
        """A new ticket of slot 0."""
        self._sequence += 1
        return Ticket(session or self.session, 0, self._sequence)

    def create(self, parent: int, name: bytes, mode: int = FILE, **options: Any) -> Attributes:
        uid, gid, rdev = options.get("uid", 0), options.get("gid", 0), options.get("rdev", 0)
        target, open_it = options.get("target", b""), options.get("open_it", False)
        return self.service.create(self.ticket(), parent, name, mode, uid, gid, rdev, target, open_it)

    def unlink(self, parent: int, name: bytes) -> None:
        self.service.unlink(self.ticket(), parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        self.service.rename(self.ticket(), parent, name, new_parent, new_name, flags)

    def names(self, directory: int) -> list[bytes]:
        page = self.service.read_directory(directory, b"", 1000)
        assert page.complete
        return [entry.name for entry in page.entries]

    def look_up(self, *names: bytes) -> Attributes | None:
        found = self.service.resolve(1, list(names))
        return found[-1] if len(found) == len(names) else None

    def new_block(self, length: int = 1000, session: int | None = None) -> BlockRecord:
        self._block += 1
        block = (session or self.session).to_bytes(8, "big") + self._block.to_bytes(8, "big")
        return BlockRecord(block, length, self._block.to_bytes(32, "big"))

    def commit(
        self,
        ino: int,
        *extents: Extent,
        blocks: list[BlockRecord] | None = None,
        cut: int | None = None,
        extend_to: int | None = None,
        changes: AttributeChanges | None = None,
        durable: bool = False,
    ) -> Attributes:
        """Commit; without `extend_to` the file gets long enough for the extents."""
        reach = max((extent.offset + extent.length for extent in extents), default=0)
        commit = Commit(
            cut,
            list(extents),
            reach if extend_to is None else extend_to,
            blocks or [],
            changes or AttributeChanges(),
            durable,
        )
        return self.wait(self.service.commit(self.ticket(), ino, commit))

    def write(self, ino: int, offset: int, length: int) -> BlockRecord:
        """Commit one new block as file bytes from `offset` on."""
        record = self.new_block(length)
        self.commit(ino, Extent(offset, length, record.block, 0), blocks=[record])
        return record

    def extents(self, ino: int) -> list[tuple[int, int, bytes, int]]:
        run = self.service.file_map(ino, 0, 10_000)
        assert run.complete
        return [(each.offset, each.length, each.block, each.block_offset) for each in run.extents]
