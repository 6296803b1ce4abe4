"""Bugs put in on purpose, one at a time: each a plausible slip that the simulation must find.

A mutant changes a function of the running code, in a process of its own. What it changes must be there: a
mutant whose target has gone fails loudly, so that the list stays true.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import dataserver.directory
import dataserver.durable
import dataserver.reading
import dataserver.segment
import dataserver.segments
import dataserver.service
import fusefs.ahead
import fusefs.files
import fusefs.handles
import fusefs.locks
import mediator.ballot
import mediator.health
import mediator.read_path
import mediator.refill
import mediator.repair
import mediator.write_path
import metaserver.bookkeeping
import metaserver.directory
import metaserver.grants
import metaserver.log
import metaserver.log_failure
import metaserver.pages
import metaserver.reserve
import metaserver.service
import metaserver.sessions
import metaserver.store
from mediator.vote import Verdict
from wire.errors import QuorumfsError


class Mutant(NamedTuple):
    """A bug: its name says what the code does wrong."""

    name: str
    put_in: Callable[[], None]


def stumbles(problem: str) -> bool:
    """Tell whether a problem is a bug's own mistake: it does not fit the code that it changes any more."""
    return f'File "{__file__}"' in problem and any(
        f"\n{kind}: " in problem for kind in ("AttributeError", "TypeError", "NameError")
    )


def _change(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function by what `make` makes of it.

    Raises:
        AttributeError: it is not there.
        TypeError: it takes other parameters than its replacement: each call would fail, and count as found.
    """
    usual = getattr(owner, name)
    changed = make(usual)
    if inspect.isfunction(usual) and inspect.isfunction(changed):
        taken, wanted = (inspect.signature(each).parameters.values() for each in (changed, usual))
        if not any(each.kind is each.VAR_POSITIONAL for each in taken) and len(taken) != len(wanted):
            raise TypeError(f"{name} takes {len(wanted)} parameters, not {len(taken)}")
    setattr(owner, name, changed)


def vote_counts_corrupt() -> None:
    def make(judge: Any) -> Any:
        def judged(*args: Any, **more: Any) -> Verdict:
            verdict: Verdict = judge(*args, **more)
            return Verdict.GOOD if verdict is Verdict.CORRUPT else verdict

        return judged

    _change(mediator.ballot, "judge", make)


def votes_are_recorded_digests() -> None:
    """A data server votes what it once recorded, not what its disk has now."""

    def vote(self: Any, first_piece: int, piece_count: int) -> bytes:
        return bytes(self._trusted(self.header()).digest)

    _change(dataserver.reading.Record, "vote", lambda _: vote)


def vote_on_the_first_piece_only() -> None:
    def make(digest: Any) -> Any:
        def first(self: Any, block: bytes, first_piece: int, piece_count: int) -> Any:
            return digest(self, block, 0, 1)

        return first

    _change(dataserver.segments.SegmentStore, "digest", make)


def repair_takes_any_bytes() -> None:
    """The source of a repair is not held against the witness."""

    def make(_: Any) -> Any:
        async def get_whole(self: Any, server: Any, record: Any) -> Any:
            from mediator.fanout import outcome_of
            from wire.methods import DataMethods

            call = server.call(self._vote_seconds, DataMethods.get, record.block, 0, 0)
            return await outcome_of(call)

        return get_whole

    _change(mediator.repair.Repairs, "_get_whole", make)
    _change(mediator.repair, "judge", lambda _: lambda *args, **more: Verdict.MISSING)


def commit_before_qw_acknowledged() -> None:
    _change(mediator.write_path.WritePath, "_require", lambda _: lambda self, *args, **more: None)


def put_acknowledged_before_it_is_synced() -> None:
    def sync(self: Any) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    _change(dataserver.service, "SharedSync", lambda kind: type("NoSync", (kind,), {"__call__": sync}))
    _change(dataserver.segments.SegmentStore, "sync", lambda _: lambda self: None)


def commit_acknowledged_before_it_is_synced() -> None:
    async def nothing(self: Any) -> None:
        pass

    _change(metaserver.log.LogSync, "sync", lambda _: nothing)


def database_not_synced_before_its_log_is_begun_over() -> None:
    """What a checkpoint moves into the metadata database is not made durable; its sums are."""

    def make(syncer: Any) -> Any:
        def without(path: bytes, usual: Any) -> Any:
            return syncer(path, lambda file, flags: 0)

        return without

    _change(metaserver.pages, "_syncer", make)


def garbage_told_before_it_is_durable() -> None:
    async def at_once(self: Any, blocks: list[bytes]) -> list[bytes]:
        return blocks

    _change(metaserver.service.MetaService, "_for_ever", lambda _: at_once)


def fsync_of_an_unchanged_file_does_nothing() -> None:
    def make(_: Any) -> Any:
        def fsync(self: Any, handle: Any) -> None:
            self._commit(handle, durable=True)
            self._make_durable(handle.inode)

        return fsync

    _change(fusefs.files.Files, "fsync", make)


def directory_not_synced() -> None:
    for module in (dataserver.durable, dataserver.segments, dataserver.segment):
        if hasattr(module, "sync_directory"):
            module.sync_directory = lambda directory: None  # type: ignore[attr-defined]


def name_of_the_log_not_synced() -> None:
    def nothing(self: Any) -> None:
        pass

    _change(metaserver.directory.Directory, "sync", lambda _: nothing)


def description_named_before_it_is_synced() -> None:
    """The file that tells whose a data server's directory is has its name, but not surely its bytes."""

    def write(path: Any, content: bytes) -> None:
        draft = path.with_name(path.name + ".tmp")
        with draft.open("wb") as file:
            file.write(content)
        draft.replace(path)
        dataserver.durable.sync_directory(path.parent)

    _change(dataserver.directory, "write_file", lambda _: write)


def returned_server_not_refilled() -> None:
    """A refill ends at once, as if nothing lacked; those that an inspection begins too."""

    async def nothing(self: Any, server: Any, progress: Any) -> tuple[int, int]:
        progress.passes += 1
        return 0, 0

    _change(mediator.refill.Refills, "_run_once", lambda _: nothing)


def lag_forgotten_at_a_mediator_restart() -> None:
    """What a mediator finds up at its start counts as never away: its recorded lag is not read."""

    def make(first_look: Any) -> Any:
        async def looked(self: Any) -> None:
            came_up, self._came_up = self._came_up, lambda server: None
            try:
                await first_look(self)
            finally:
                self._came_up = came_up

        return looked

    _change(mediator.health.Health, "first_look", make)


def refill_skips_blocks_written_meanwhile() -> None:
    """What was written since a server's first refill began is never filled there."""
    newest: dict[int, bytes] = {}

    def make(fill: Any) -> Any:
        async def older(self: Any, server: Any, records: Any, progress: Any, unknown: int = 0) -> Any:
            if records:
                newest.setdefault(server.number, max(record.block for record in records))
            wanted = [record for record in records if record.block <= newest[server.number]]
            return await fill(self, server, wanted, progress, unknown)

        return older

    _change(mediator.refill.Refills, "_fill_batch", make)


def inventory_loses_an_entry_of_each_page() -> None:
    def make(inventory: Any) -> Any:
        def lossy(self: Any, after: bytes, limit: int) -> Any:
            page = inventory(self, after, limit)
            return page[:-2] + page[-1:] if len(page) > 2 else page

        return lossy

    _change(dataserver.segments.SegmentStore, "inventory", make)


def collection_races_a_commit() -> None:
    """A block that is not committed yet counts as garbage although its session lives."""

    def make(_: Any) -> Any:
        def collectable(self: Any, block: bytes, next_session: int) -> bool:
            return self._execute("SELECT 1 FROM blocks WHERE block = ?", (block,)).fetchone() is None

        return collectable

    _change(metaserver.bookkeeping.Bookkeeping, "_is_collectable", make)


def call_sent_again_is_done_twice() -> None:
    def make(_: Any) -> Any:
        def work(self: Any, ticket: Any, newest: Any, do: Any, args: Any, kwargs: Any) -> Any:
            return do(ticket.session, *args, **kwargs)

        return work

    _change(metaserver.store.Store, "_work_or_recall", make)


def late_call_is_carried_out() -> None:
    """The order of a slot's calls is not looked at, only whether it was the very last."""

    def make(work_or_recall: Any) -> Any:
        def work(self: Any, ticket: Any, newest: Any, do: Any, args: Any, kwargs: Any) -> Any:
            from wire.errors import SequenceError

            try:
                return work_or_recall(self, ticket, newest, do, args, kwargs)
            except SequenceError:
                return do(ticket.session, *args, **kwargs)

        return work

    _change(metaserver.store.Store, "_work_or_recall", make)


def lock_kept_after_its_session() -> None:
    _change(metaserver.sessions.Sessions, "on_end", lambda _: lambda self, forget: None)


def lost_locks_go_unnoticed() -> None:
    _change(fusefs.locks.FileLocks, "lose", lambda _: lambda self: None)


def truncation_not_atomic() -> None:
    """O_TRUNC takes effect at open, in a commit of its own."""

    def make(open_: Any) -> Any:
        def opened(self: Any, ino: int, flags: int, walk: Any = None) -> Any:
            result = open_(self, ino, flags, walk)
            self._writeback.commit(result[0].inode, False)
            return result

        return opened

    _change(fusefs.files.Files, "open", make)


def close_hides_a_failed_commit() -> None:
    def make(flush: Any) -> Any:
        def quiet(self: Any, handle: Any, *args: Any) -> None:
            try:
                flush(self, handle, *args)
            except QuorumfsError:
                pass

        return quiet

    _change(fusefs.files.Files, "flush", make)


def quarantined_copy_served() -> None:
    """A copy that lost a vote is found again by the next look at the directory."""

    def make(repair: Any) -> Any:
        def kept(self: Any, block: bytes, digest: bytes, pieces: bytes, data: Any, note: str) -> str:
            return (
                "replaced"
                if self._index.get(block) is not None
                else repair(self, block, digest, pieces, data, note)
            )

        return kept

    _change(dataserver.segments.SegmentStore, "_repair", make)


def expired_session_keeps_its_open_files() -> None:
    def make(end: Any) -> Any:
        def ended(self: Any, session: int) -> set[int]:
            held: set[int] = end(self, session)
            for ino in held:
                self._holders[ino] = self._holders.get(ino, 0) + 1
            return held

        return ended

    _change(metaserver.sessions.Sessions, "end", make)


def second_session_does_not_wait_for_the_grant() -> None:
    async def at_once(self: Any) -> None:
        pass

    _change(metaserver.grants.Grants, "_await_end", lambda _: at_once)


def epoch_is_the_date_of_a_start() -> None:
    def date(self: Any) -> Any:
        return self.now_ns()

    _change(metaserver.store.Store, "_begin_epoch", lambda _: date)


def failed_sync_of_the_log_is_told_once() -> None:
    """The next one succeeds, without what the kernel has dropped."""

    def make(_: Any) -> Any:
        def once(database: bytes) -> str | None:
            return metaserver.log_failure._failures.pop(database, None)

        return once

    _change(metaserver.log_failure, "reason", make)


def log_not_written_again_at_a_start() -> None:
    def nothing(log: Any, durable: int, committed: int) -> None:
        pass

    _change(metaserver.log_failure, "write_again", lambda _: nothing)


def unreadable_frame_of_the_log_is_taken_for_damage() -> None:
    def make(log_reader: Any) -> Any:
        def reader(path: bytes, usual: Any) -> Any:
            return log_reader(path, lambda *args: 0 if usual(*args) == 0 else metaserver.pages._SHORT_READ)

        return reader

    _change(metaserver.pages, "_log_reader", make)


def reserve_is_not_given_up() -> None:
    def release(self: Any) -> bool:
        return False

    _change(metaserver.reserve.Reserve, "release", lambda _: release)


def late_copies_of_lock_calls_are_carried_out_after_a_restart() -> None:
    def nothing(self: Any, epoch: int) -> None:
        pass

    _change(metaserver.service.MetaService, "_require_epoch", lambda _: nothing)


def late_close_lets_go_of_what_was_opened_since() -> None:
    def make(let_go: Any) -> Any:
        def any_time(self: Any, session: int, inodes: Any, number: int) -> None:
            let_go(self, session, inodes, 2**63)

        return any_time

    _change(metaserver.sessions.Sessions, "let_go", make)


def name_removed_before_the_server_knows_who_has_it_open() -> None:
    def removing(self: Any) -> Any:
        return contextlib.nullcontext()

    _change(fusefs.handles.OpenInodes, "removing", lambda _: removing)


def bytes_fetched_ahead_are_used_for_any_version() -> None:
    def make(offer: Any) -> Any:
        def offered(self: Any, opened: Any, ready: Any) -> bool:
            if ready is not None:
                record = fusefs.ahead.only_block(opened.map)
                if record is not None:
                    self._reader._keep(record.block, 0, memoryview(ready.part.data))
                    return True
            return bool(offer(self, opened, ready))

        return offered

    _change(fusefs.files.Files, "_offer", make)


MUTANTS = [
    Mutant(function.__name__.replace("_", " "), function)
    for function in (
        vote_counts_corrupt,
        votes_are_recorded_digests,
        vote_on_the_first_piece_only,
        repair_takes_any_bytes,
        commit_before_qw_acknowledged,
        put_acknowledged_before_it_is_synced,
        commit_acknowledged_before_it_is_synced,
        database_not_synced_before_its_log_is_begun_over,
        garbage_told_before_it_is_durable,
        fsync_of_an_unchanged_file_does_nothing,
        directory_not_synced,
        name_of_the_log_not_synced,
        description_named_before_it_is_synced,
        returned_server_not_refilled,
        lag_forgotten_at_a_mediator_restart,
        refill_skips_blocks_written_meanwhile,
        inventory_loses_an_entry_of_each_page,
        collection_races_a_commit,
        call_sent_again_is_done_twice,
        late_call_is_carried_out,
        lock_kept_after_its_session,
        lost_locks_go_unnoticed,
        truncation_not_atomic,
        close_hides_a_failed_commit,
        quarantined_copy_served,
        expired_session_keeps_its_open_files,
        second_session_does_not_wait_for_the_grant,
        epoch_is_the_date_of_a_start,
        late_copies_of_lock_calls_are_carried_out_after_a_restart,
        late_close_lets_go_of_what_was_opened_since,
        failed_sync_of_the_log_is_told_once,
        log_not_written_again_at_a_start,
        unreadable_frame_of_the_log_is_taken_for_damage,
        reserve_is_not_given_up,
        name_removed_before_the_server_knows_who_has_it_open,
        bytes_fetched_ahead_are_used_for_any_version,
    )
]
