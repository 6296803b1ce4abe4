"""The database: its one connection, transactions, exactly-once answers, and numbers never given twice.

Knows no rule of the namespace. Threading: the connection belongs to the thread that opened it, the
event loop's; each transaction is a plain function, so that nothing runs in between. A killed process
loses nothing that was committed (the log is in the page cache); `metaserver.log` makes it survive a
power loss.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from metaserver import answers, database_errors, fence, log_failure, pages, sums
from metaserver.connection import ReadingConnection
from metaserver.in_place import FilesInPlace
from metaserver.log_mark import LogMark, mark_file
from metaserver.reserve import Reserve
from metaserver.schema import ADDED_SCHEMA, APPLICATION_ID, CONFIGURATION, FORMAT_VERSION, SCHEMA
from wire.config import ConfigError
from wire.errors import (
    InternalError,
    InvalidArgument,
    NoSpace,
    QuorumfsError,
    SequenceError,
    SessionUnknown,
)
from wire.messages import ROOT_INODE, Attributes, Ticket
from wire.read_ahead import read_file_ahead

SLOTS_PER_SESSION = 1024
SLOTS_REMEMBERED = 16 * 1024
"""Of so many slots it is known without asking that a call is newer than the answer that is kept."""
INODES_RESERVED = 65536
"""So many inode numbers are reserved by one change of the counter, long before they are needed.

A power loss may undo a change of the counter, and a mount may still have inodes open whose numbers were given
by then: so the first numbers of a life were reserved at its start, before the log was made durable, and
the next ones half a range ahead, which takes several checkpoints to reach.
"""
PAGE_CACHE_KIB = 64 * 1024
BUSY_SECONDS = 1.0
CHECKPOINT_TRIES, CHECKPOINT_RETRY_SECONDS = 50, 0.01
LOG_PAGES_MAX = 16 * 1024
"""A log longer than this (64 MiB) is checkpointed by the next commit itself; see metaserver.log."""

_NO_ROOM = "{}: its disk is full, so that the metadata server cannot start; nothing is lost: make room on it"

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A", bound=Attributes | None)

logger = logging.getLogger("metaserver")


class Store:
    """One open database.

    Attributes:
        execute: runs one statement (inside of a transaction if it changes anything).
        executemany: the same for many rows.
        end_reading, keep_reading: see metaserver.connection.
        epoch: a number that grows at each start on this database, whatever the date is.
        in_doubt: data servers may know of a newer state of this database; until they were asked, what it does
            not know must not be deleted.
        was_put_back: this database took the place of one lately, whose sessions it does not know. They ended
            then: until it has served for a lease (`settle`), their mounts may still rely on them.
        disk_failure: why the disk did not take the last change, None if it did.
        bring_in: called before anything is read or changed: a mount may have told of changes without a call.
        files: tells whether somebody removed or replaced a file of it.
        sessions: the numbers of the living sessions (kept by metaserver.sessions).
        totals: how many inodes, entries, blocks, block_bytes, garbage_blocks and
            lagging_replicas there are; changed by
            those who change the tables, and put back when a transaction fails.
    """

    def __init__(
        self,
        path: Path,
        cluster: str,
        *,
        complete: bool = False,
        older_than: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open the database, or create it where there is none and none should be.

        Args:
            path: the database file.
            cluster: whose it must be.
            complete: the database must be there already.
            older_than: a milestone that data servers know, and that the database is behind: it is fenced.
            now_ns: the clock for times that are kept.

        Raises:
            ConfigError: it is damaged, missing, foreign, or of another format.
        """
        self.path = path
        self._name = os.fsencode(path.absolute())
        self._next_inode = self._inode_limit = 0
        self._answered: dict[tuple[int, int], int] = {}
        """The sequence that a slot keeps an answer of, as far as is known; by session and slot."""
        self._damaged_frames = pages.damaged_frames(path)
        self.reserve = Reserve(path)
        self.disk_failure: str | None = None
        self.bring_in: Callable[[], None] = lambda: None
        self.now_ns = now_ns
        try:
            self._open(cluster, complete, older_than)
        except NoSpace:
            if not self.reserve.release():
                raise ConfigError(_NO_ROOM.format(path)) from None
            try:
                self._open(cluster, complete, older_than)
            except NoSpace:
                raise ConfigError(_NO_ROOM.format(path)) from None

    def _open(self, cluster: str, complete: bool, older_than: int) -> None:
        """Do what the constructor says. Raises NoSpace too; nothing is open then."""
        path = self.path
        self.log_mark = LogMark(path)
        try:
            self._prepare(path, complete)
            self._connection = pages.connect(
                path, ReadingConnection, isolation_level=None, cached_statements=256, timeout=BUSY_SECONDS
            )
            self.end_reading, self.keep_reading = self._connection.end_reading, self._connection.keep_reading
            self.execute = self._connection.execute
            self.executemany = self._connection.executemany
            try:
                blank = not complete and not self._fetch("SELECT count(*) FROM sqlite_schema")[0]
                if not blank:
                    self._check(cluster)
                self._configure()
                if blank:
                    self._create(cluster)
                for statement in filter(None, map(str.strip, ADDED_SCHEMA.split(";"))):
                    self.execute(statement)
                if not blank:
                    self._fence(older_than)
                self.in_doubt = not blank
                self.sessions = {session for (session,) in self.execute("SELECT session FROM sessions")}
                self.totals = self._count()
                (self._next_inode,) = self._fetch("SELECT next FROM counters WHERE name = 'inode'")
                self._reserve_inodes(self._next_inode)
                self.epoch = self._begin_epoch()
                self.was_put_back = self._fetch("SELECT 1 FROM restorations LIMIT 1") is not None
                self.files = FilesInPlace(path)
                pages.read_shared(self._name, 1, 0)  # from now on its name is not needed
            except BaseException:
                self._connection.close()
                self.log_mark.close()
                raise
        except sqlite3.Error as error:
            if pages.is_damage(error):
                raise ConfigError(f"{path}: the database is damaged ({error}); {pages.ADVICE}") from None
            if database_errors.is_full(error):
                raise NoSpace("the metadata server's disk is full") from None
            raise ConfigError(f"{path}: the database cannot be used ({error})") from None

    def _prepare(self, path: Path, complete: bool) -> None:
        try:
            if not complete and not (path.exists() and path.stat().st_size):
                mark_file(path).unlink(missing_ok=True)  # of a database that is gone
                pages.create(path)
            pages.refuse_unstamped(path)
            sums.begin(path)
            self.log_mark.begin()
            read_file_ahead(path)  # _count goes through all of it
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("the metadata server's disk is full") from None
            raise ConfigError(f"{path}: cannot be used: {error.strerror}") from None

    def _configure(self) -> None:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"cache_size = -{PAGE_CACHE_KIB}",
            f"wal_autocheckpoint = {LOG_PAGES_MAX}",
            "journal_size_limit = 67108864",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "mmap_size = 0",
        ):
            self.execute(f"PRAGMA {pragma}").fetchall()

    def _check(self, cluster: str) -> None:
        """Refuse a database that is not ours; changes nothing, and takes the same time for any size."""
        (application,) = self._fetch("PRAGMA application_id")
        (version,) = self._fetch("PRAGMA user_version")
        if application != APPLICATION_ID:
            raise ConfigError(f"{self.path}: this is no database of quorumfs; {pages.ADVICE}")
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{self.path} has format {version}, this release reads {FORMAT_VERSION} only; "
                "use the release that made it"
            )
        (owner,) = self._fetch("SELECT value FROM facts WHERE name = 'cluster'")
        if owner != cluster:
            raise ConfigError(f"{self.path} belongs to cluster {owner!r}, not to this one ({cluster!r})")
        if self._fetch("SELECT mode FROM inodes WHERE ino = ?", ROOT_INODE) is None:
            raise ConfigError(f"{self.path}: the root directory is missing; {pages.ADVICE}")

    def _fence(self, older_than: int) -> None:
        """See to it that no session number is given twice, should the database be an older one."""
        self.execute("BEGIN IMMEDIATE")
        if older_than:
            fence.put_up_late(self._connection, self.now_ns(), older_than)
        elif self._fetch("SELECT 1 FROM restorations LIMIT 1") is None:  # or it has been fenced just now
            fence.skip_sessions(self._connection, self.now_ns())
        self.execute("COMMIT")

    def _fetch(self, statement: str, *values: object) -> Any:
        return self.execute(statement, values).fetchone()

    def _create(self, cluster: str) -> None:
        now = self.now_ns()
        self.execute("BEGIN IMMEDIATE")
        for statement in filter(None, map(str.strip, SCHEMA.split(";"))):
            self.execute(statement)
        for statement in filter(None, map(str.strip, ADDED_SCHEMA.split(";"))):
            self.execute(statement)
        self.execute(
            "INSERT INTO facts VALUES ('cluster', ?), ('database', ?)", (cluster, secrets.token_hex(16))
        )
        first_session = fence.put_up_before(self._connection, now)
        self.execute(
            "INSERT INTO counters VALUES ('inode', ?), ('session', ?)", (ROOT_INODE + 1, first_session)
        )
        self.execute(
            "INSERT INTO inodes VALUES (?, ?, 2, ?, ?, 0, 0, 0, ?, ?, ?, 1, ?, NULL)",
            (ROOT_INODE, 0o040755, os.geteuid(), os.getegid(), now, now, now, ROOT_INODE),
        )
        self.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        self.execute("COMMIT")

    def _count(self) -> dict[str, int]:
        inodes, entries, garbage = self._fetch(
            "SELECT (SELECT count(*) FROM inodes), (SELECT count(*) FROM entries),"
            " (SELECT count(*) FROM garbage)"
        )
        blocks, block_bytes = self._fetch("SELECT count(*), coalesce(sum(length), 0) FROM blocks")
        (lagging,) = self._fetch("SELECT count(*) FROM lag")
        return {
            "inodes": inodes,
            "entries": entries,
            "blocks": blocks,
            "block_bytes": block_bytes,
            "garbage_blocks": garbage,
            "lagging_replicas": lagging,
        }

    def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that changes nothing; the database's errors become the wire's."""
        self.bring_in()
        try:
            if self._connection.reading is None:
                self._connection.begin_reading()
            return work(*args, **kwargs)
        except (sqlite3.Error, OverflowError) as error:
            self._connection.end_reading()
            raise database_errors.told(error, self.path) from error

    def change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function as one transaction: all of its changes, or none if it raises.

        With the disk full, the log is emptied into the database, the reserve is given up, and it is tried
        once more.

        Raises:
            NoSpace: the disk is full; nothing was changed.
            InternalError: the database failed, or its log was met damaged, or could not be made durable;
                nothing was changed.
        """
        self.bring_in()
        try:
            return self._change(work, *args, **kwargs)
        except NoSpace as error:
            if error.__cause__ is None:
                raise  # a limit of the work's own, not the disk's
            self.reserve.release()
            self.empty_log()
        return self._change(work, *args, **kwargs)

    def empty_log(self) -> None:
        """Move the log into the database, so that its room is free again; as far as the disk lets us."""
        self._connection.end_reading()
        self._wait_for_others(0.0)  # a check or a copy may read the log for minutes
        try:
            self._try_to_empty_log()
        finally:
            self._wait_for_others(BUSY_SECONDS)

    def _wait_for_others(self, seconds: float) -> None:
        """Say how long SQLite waits for other connections."""
        self.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}").fetchall()

    def _try_to_empty_log(self) -> None:
        for _ in range(CHECKPOINT_TRIES):
            try:
                if self.log_mark.retire(self.execute):
                    (busy, *_), *_ = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                    if not busy:
                        return
            except sqlite3.Error as error:
                logger.warning("the log cannot be emptied: %s", error)
                return
            if log_failure.reason(self._name) is not None or self._connection.may_read:
                return  # if it is a check or a copy that reads, it may do so for long
            time.sleep(CHECKPOINT_RETRY_SECONDS)  # the thread that keeps the log short is at it

    def _change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._damaged_frames:
            raise InternalError(
                "the log of the metadata database is damaged, so that a change would be lost at the next "
                f"start; see `quorumfs status`; {pages.ADVICE}"
            )
        if (why := log_failure.reason(self._name)) is not None:
            raise InternalError(
                f"the metadata server's disk failed ({why}): it takes no change until it is started anew"
            )
        if self.files.displaced:
            raise InternalError(self.files.displaced)
        execute = self.execute
        totals, numbers = self.totals.copy(), (self._next_inode, self._inode_limit)
        try:
            if self._connection.reading is None:
                self._connection.begin_reading()
            execute("BEGIN IMMEDIATE")
            answer = work(*args, **kwargs)
            execute("COMMIT")
            self.disk_failure = None
            return answer
        except BaseException as error:
            self.totals = totals
            self._next_inode, self._inode_limit = numbers  # nobody was told of those that were taken
            if self._connection.in_transaction:
                self._roll_back()
            if isinstance(error, sqlite3.Error | OverflowError):
                self._connection.end_reading()
                if database_errors.is_disk_failure(error):
                    self.disk_failure = str(error)
                raise database_errors.told(error, self.path) from error
            raise

    def _roll_back(self) -> None:
        """Take a change back; one that cannot be is open still, and the next one has to be tried for it."""
        try:
            self.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.error("a change could not be taken back: %s", error)

    def once(
        self, ticket: Ticket, work: Callable[Concatenate[int, P], A], *args: P.args, **kwargs: P.kwargs
    ) -> A:
        """In one transaction, run `work(session, ...)` and keep its answer; or return the kept answer.

        A call that raises changes nothing and keeps nothing: re-sent, it is tried anew.

        Raises:
            SessionUnknown: the ticket's session does not live.
            SequenceError: a newer call of the slot was answered already.
            InvalidArgument: the ticket's numbers are out of range.
        """
        if ticket.session not in self.sessions:
            raise SessionUnknown(f"session {ticket.session} is not known (any more)")
        check_ticket(ticket)
        return self.change(lambda: self.once_within(ticket, work, *args, **kwargs))

    def once_within(
        self, ticket: Ticket, work: Callable[Concatenate[int, P], A], *args: P.args, **kwargs: P.kwargs
    ) -> A:
        """Do the same inside of a transaction, for a session that lives."""
        session, slot, sequence = ticket
        newest = self._answered.get((session, slot))
        if newest is None or sequence <= newest:
            kept = self.execute(
                "SELECT sequence, answer FROM slots WHERE session = ? AND slot = ?", (session, slot)
            ).fetchone()
            if kept is not None and sequence <= kept[0]:
                if sequence < kept[0]:
                    raise SequenceError(f"call {sequence} of slot {slot} is older than its call {kept[0]}")
                return answers.decode(kept[1])  # type: ignore[return-value]  # what the same call answered
        answer = work(session, *args, **kwargs)
        self.execute(
            "REPLACE INTO slots VALUES (?, ?, ?, ?)", (session, slot, sequence, answers.encode(answer))
        )
        if len(self._answered) >= SLOTS_REMEMBERED:
            self._answered.clear()
        self._answered[session, slot] = sequence  # at most that; a change that is undone leaves it too large
        return answer

    def is_answered(self, ticket: Ticket) -> bool:
        """Tell whether this very call was carried out, so that its answer is kept."""
        kept = self._fetch(
            "SELECT sequence FROM slots WHERE session = ? AND slot = ?", ticket.session, ticket.slot
        )
        return kept is not None and kept[0] == ticket.sequence

    def take_inode_numbers(self, count: int) -> int:
        """Return the first of so many inode numbers that were never given. Only inside of a transaction."""
        if self._next_inode + count + INODES_RESERVED // 2 >= self._inode_limit:
            self._reserve_inodes(self._inode_limit)
        self._next_inode += count
        return self._next_inode - count

    def was_given(self, ino: int) -> bool:
        """Tell whether an inode number was ever given."""
        return ROOT_INODE < ino < self._next_inode

    def _reserve_inodes(self, start: int) -> None:
        self._inode_limit = start + INODES_RESERVED
        self.execute("UPDATE counters SET next = ? WHERE name = 'inode'", (self._inode_limit,))

    def take_session_number(self) -> int:
        """Return a session number that was never given. Only inside of a transaction."""
        (session,) = self._fetch("SELECT next FROM counters WHERE name = 'session'")
        self.execute("UPDATE counters SET next = ? WHERE name = 'session'", (session + 1,))
        return int(session)

    def _begin_epoch(self) -> int:
        self.execute("INSERT OR IGNORE INTO counters VALUES ('epoch', ?)", (self.now_ns(),))
        (epoch,) = self._fetch("SELECT next FROM counters WHERE name = 'epoch'")
        self.execute("UPDATE counters SET next = ? WHERE name = 'epoch'", (epoch + 1,))
        return int(epoch)

    def keep_configuration(self, text: str) -> None:
        """Have all copies of the database hold the cluster's configuration, should its file be lost."""
        try:
            if self.read(
                self._fetch, "SELECT 1 FROM facts WHERE name = ? AND value = ?", CONFIGURATION, text
            ):
                return
            self.change(self.execute, "INSERT OR REPLACE INTO facts VALUES (?, ?)", (CONFIGURATION, text))
        except QuorumfsError as error:
            logger.warning("copies of the metadata do not have the present configuration: %s", error.message)

    def settle(self) -> None:
        """Note that nobody relies any more on what was before this database. Only inside of a transaction."""
        self.execute("DELETE FROM restorations")
        self.was_put_back = False

    def free_bytes(self) -> int:
        """Return how much room is left on its disk; 0 if its directory was removed."""
        try:
            disk = os.statvfs(self.path.parent)
        except FileNotFoundError:
            return 0
        return disk.f_bavail * disk.f_frsize

    def changed_rows(self) -> int:
        """Return how many rows were changed since the start."""
        return self._connection.total_changes

    def close(self) -> None:
        """Close the connection; the last one moves the log into the database and removes it."""
        self._connection.end_reading()
        try:
            self.log_mark.retire(self.execute)
        except sqlite3.Error as error:
            logger.warning("the log stays, as it cannot be moved into the database: %s", error)
        self._connection.close()
        self.log_mark.close()


def check_ticket(ticket: Ticket) -> None:
    """Raise InvalidArgument unless a ticket's numbers are in range."""
    if not (0 <= ticket.slot < SLOTS_PER_SESSION and 0 <= ticket.sequence < 2**63):
        raise InvalidArgument(f"a slot is a number from 0 to {SLOTS_PER_SESSION - 1}")
