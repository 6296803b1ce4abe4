"""Bugs of mounts, mediators and data servers, put in on purpose (see tests.sim.mutants). One thread."""

from __future__ import annotations

import asyncio
import contextlib
import types
from typing import Any

import dataserver.directory
import dataserver.durable
import dataserver.index
import dataserver.reading
import dataserver.segment
import dataserver.segments
import dataserver.service
import fusefs.ahead
import fusefs.files
import fusefs.handles
import fusefs.locks
import fusefs.patience
import fusefs.session
import mediator.ballot
import mediator.health
import mediator.refill
import mediator.repair
import mediator.write_path
from mediator.vote import Verdict
from tests.sim.changes import change
from wire.errors import QuorumfsError


def vote_counts_corrupt() -> None:
    def make(judge: Any) -> Any:
        def judged(*args: Any, **more: Any) -> Verdict:
            verdict: Verdict = judge(*args, **more)
            return Verdict.GOOD if verdict is Verdict.CORRUPT else verdict

        return judged

    change(mediator.ballot, "judge", make)


def votes_are_recorded_digests() -> None:
    """A data server votes what it once recorded, not what its disk has now."""

    def vote(self: Any, first_piece: int, piece_count: int) -> bytes:
        return bytes(self._trusted(self.header()).digest)

    change(dataserver.reading.Record, "vote", lambda _: vote)


def vote_on_the_first_piece_only() -> None:
    def make(digest: Any) -> Any:
        def first(self: Any, block: bytes, first_piece: int, piece_count: int) -> Any:
            return digest(self, block, 0, 1)

        return first

    change(dataserver.segments.SegmentStore, "digest", make)


def repair_takes_any_bytes() -> None:
    """The source of a repair is not held against the witness."""

    def make(_: Any) -> Any:
        async def get_whole(self: Any, server: Any, record: Any) -> Any:
            from mediator.fanout import outcome_of
            from wire.methods import DataMethods

            call = server.call(self._vote_seconds, DataMethods.get, record.block, 0, 0)
            return await outcome_of(call)

        return get_whole

    change(mediator.repair.Repairs, "_get_whole", make)
    change(mediator.repair, "judge", lambda _: lambda *args, **more: Verdict.MISSING)


def commit_before_qw_acknowledged() -> None:
    change(mediator.write_path.WritePath, "_require", lambda _: lambda self, *args, **more: None)


def put_acknowledged_before_it_is_synced() -> None:
    def sync(self: Any) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    change(dataserver.service, "SharedSync", lambda kind: type("NoSync", (kind,), {"__call__": sync}))
    change(dataserver.segments.SegmentStore, "sync", lambda _: lambda self: None)


def fsync_of_an_unchanged_file_does_nothing() -> None:
    def make(_: Any) -> Any:
        def fsync(self: Any, handle: Any) -> None:
            self._commit(handle, durable=True)
            self._make_durable(handle.inode)

        return fsync

    change(fusefs.files.Files, "fsync", make)


def directory_not_synced() -> None:
    for module in (dataserver.durable, dataserver.segments, dataserver.segment):
        if hasattr(module, "sync_directory"):
            module.sync_directory = lambda directory: None  # type: ignore[attr-defined]


def description_named_before_it_is_synced() -> None:
    """The file that tells whose a data server's directory is has its name, but not surely its bytes."""

    def write(path: Any, content: bytes) -> None:
        draft = path.with_name(path.name + ".tmp")
        with draft.open("wb") as file:
            file.write(content)
        draft.replace(path)
        dataserver.durable.sync_directory(path.parent)

    change(dataserver.directory, "write_file", lambda _: write)


def returned_server_not_refilled() -> None:
    """A refill ends at once, as if nothing lacked; those that an inspection begins too."""

    async def nothing(self: Any, server: Any, progress: Any) -> tuple[int, int]:
        progress.passes += 1
        return 0, 0

    change(mediator.refill.Refills, "_run_once", lambda _: nothing)


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

    change(mediator.health.Health, "first_look", make)


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

    change(mediator.refill.Refills, "_fill_batch", make)


def inventory_loses_an_entry_of_each_page() -> None:
    def make(inventory: Any) -> Any:
        def lossy(self: Any, after: bytes, limit: int) -> Any:
            page = inventory(self, after, limit)
            return page[:-2] + page[-1:] if len(page) > 2 else page

        return lossy

    change(dataserver.segments.SegmentStore, "inventory", make)


def lost_locks_go_unnoticed() -> None:
    change(fusefs.locks.FileLocks, "lose", lambda _: lambda self: False)


def only_locked_files_fail_with_their_session() -> None:
    """What was written to other files under the lock of one is committed in the next session."""

    def make(lose: Any) -> Any:
        def of_some(self: Any) -> bool:
            locked = {handle.inode for handle in self._users}
            usual, self._opens = self._opens, types.SimpleNamespace(all=lambda: list(locked))
            try:
                lose(self)
            finally:
                self._opens = usual
            return False

        return of_some

    change(fusefs.locks.FileLocks, "lose", make)


def damaged_index_is_never_built_anew() -> None:
    def note(self: Any, what: str) -> None:
        self.damage = self.damage or what

    change(dataserver.index.Index, "_note_damage", lambda _: note)


def truncation_not_atomic() -> None:
    """O_TRUNC takes effect at open, in a commit of its own."""

    def make(open_: Any) -> Any:
        def opened(self: Any, ino: int, flags: int, walk: Any = None) -> Any:
            result = open_(self, ino, flags, walk)
            self._writeback.commit(result[0].inode, False)
            return result

        return opened

    change(fusefs.files.Files, "open", make)


def close_hides_a_failed_commit() -> None:
    def make(flush: Any) -> Any:
        def quiet(self: Any, handle: Any, *args: Any) -> None:
            try:
                flush(self, handle, *args)
            except QuorumfsError:
                pass

        return quiet

    change(fusefs.files.Files, "flush", make)


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

    change(dataserver.segments.SegmentStore, "_repair", make)


def name_removed_before_the_server_knows_who_has_it_open() -> None:
    def removing(self: Any) -> Any:
        return contextlib.nullcontext()

    change(fusefs.handles.OpenInodes, "removing", lambda _: removing)


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

    change(fusefs.files.Files, "_offer", make)


def waits_end_at_the_deadline() -> None:
    """With `unavailable = "wait"` a call fails all the same while servers are away."""

    def once(self: Any, call: Any) -> Any:
        return call()

    change(fusefs.patience.Patience, "persist", lambda _: once)
