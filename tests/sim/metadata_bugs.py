"""Bugs of the metadata server, put in on purpose (see tests.sim.mutants). One thread."""

from __future__ import annotations

from typing import Any

import metaserver.bookkeeping
import metaserver.directory
import metaserver.grants
import metaserver.log
import metaserver.log_failure
import metaserver.milestones
import metaserver.namespace
import metaserver.pages
import metaserver.reserve
import metaserver.service
import metaserver.sessions
import metaserver.store
from tests.sim.changes import change


def commit_acknowledged_before_it_is_synced() -> None:
    async def nothing(self: Any) -> None:
        pass

    change(metaserver.log.LogSync, "sync", lambda _: nothing)


def database_not_synced_before_its_log_is_begun_over() -> None:
    """What a checkpoint moves into the metadata database is not made durable; its sums are."""

    def make(syncer: Any) -> Any:
        def without(path: bytes, usual: Any) -> Any:
            return syncer(path, lambda file, flags: 0)

        return without

    change(metaserver.pages, "_syncer", make)


def garbage_told_before_it_is_durable() -> None:
    async def at_once(self: Any, blocks: list[bytes]) -> list[bytes]:
        return blocks

    change(metaserver.service.MetaService, "_for_ever", lambda _: at_once)


def name_of_the_log_not_synced() -> None:
    def nothing(self: Any) -> None:
        pass

    change(metaserver.directory.Directory, "sync", lambda _: nothing)


def collection_races_a_commit() -> None:
    """A block that is not committed yet counts as garbage although its session lives."""

    def make(_: Any) -> Any:
        def collectable(self: Any, block: bytes, next_session: int) -> bool:
            return self._execute("SELECT 1 FROM blocks WHERE block = ?", (block,)).fetchone() is None

        return collectable

    change(metaserver.bookkeeping.Bookkeeping, "_is_collectable", make)


def call_sent_again_is_done_twice() -> None:
    def make(_: Any) -> Any:
        def work(self: Any, ticket: Any, do: Any, *args: Any, **kwargs: Any) -> Any:
            return do(ticket.session, *args, **kwargs)

        return work

    change(metaserver.store.Store, "once_within", make)


def late_call_is_carried_out() -> None:
    """The order of a slot's calls is not looked at, only whether it was the very last."""

    def make(once_within: Any) -> Any:
        def work(self: Any, ticket: Any, do: Any, *args: Any, **kwargs: Any) -> Any:
            from wire.errors import SequenceError

            try:
                return once_within(self, ticket, do, *args, **kwargs)
            except SequenceError:
                return do(ticket.session, *args, **kwargs)

        return work

    change(metaserver.store.Store, "once_within", make)


def lock_kept_after_its_session() -> None:
    change(metaserver.sessions.Sessions, "on_end", lambda _: lambda self, forget: None)


def expired_session_keeps_its_open_files() -> None:
    def make(end: Any) -> Any:
        def ended(self: Any, session: int) -> set[int]:
            held: set[int] = end(self, session)
            for ino in held:
                self._holders[ino] = self._holders.get(ino, 0) + 1
            return held

        return ended

    change(metaserver.sessions.Sessions, "end", make)


def second_session_does_not_wait_for_the_grant() -> None:
    async def at_once(self: Any) -> None:
        pass

    change(metaserver.grants.Grants, "_await_end", lambda _: at_once)


def epoch_is_the_date_of_a_start() -> None:
    def date(self: Any) -> Any:
        return self.now_ns()

    change(metaserver.store.Store, "_begin_epoch", lambda _: date)


def older_database_is_not_found_out() -> None:
    def compare(self: Any, kept: Any, *, enough: bool) -> bool:
        self._store.in_doubt = self._store.in_doubt and not enough
        return False

    change(metaserver.milestones.Milestones, "compare", lambda _: compare)


def failed_sync_of_the_log_is_told_once() -> None:
    """The next one succeeds, without what the kernel has dropped."""

    def make(_: Any) -> Any:
        def once(database: bytes) -> str | None:
            return metaserver.log_failure._failures.pop(database, None)

        return once

    change(metaserver.log_failure, "reason", make)


def log_not_written_again_at_a_start() -> None:
    def nothing(log: Any, durable: int, committed: int) -> None:
        pass

    change(metaserver.log_failure, "write_again", lambda _: nothing)


def unreadable_frame_of_the_log_is_taken_for_damage() -> None:
    def make(log_reader: Any) -> Any:
        def reader(path: bytes, usual: Any) -> Any:
            return log_reader(path, lambda *args: 0 if usual(*args) == 0 else metaserver.pages._SHORT_READ)

        return reader

    change(metaserver.pages, "_log_reader", make)


def reserve_is_not_given_up() -> None:
    def release(self: Any) -> bool:
        return False

    change(metaserver.reserve.Reserve, "release", lambda _: release)


def late_copies_of_lock_calls_are_carried_out_after_a_restart() -> None:
    def nothing(self: Any, epoch: int) -> None:
        pass

    change(metaserver.service.MetaService, "_require_epoch", lambda _: nothing)


def late_close_lets_go_of_what_was_opened_since() -> None:
    def make(let_go: Any) -> Any:
        def any_time(self: Any, session: int, inodes: Any, number: int) -> None:
            let_go(self, session, inodes, 2**63)

        return any_time

    change(metaserver.sessions.Sessions, "let_go", make)


def file_is_born_though_others_came() -> None:
    """Who has looked in vain, and told others so, finds it all the same a moment later."""

    def make(bear: Any) -> Any:
        def born(self: Any, session: int, ino: int, birth: Any, *now: Any) -> Any:
            usual = self._sessions.is_alone
            self._sessions.is_alone = lambda session: True
            try:
                return bear(self, session, ino, birth, *now)
            finally:
                self._sessions.is_alone = usual

        return born

    change(metaserver.namespace.Namespace, "bear", make)
