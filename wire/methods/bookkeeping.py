"""What the metadata server offers to the mediator: commits, blocks, who lacks which, checks and copies."""

from __future__ import annotations

from typing import Any

from wire.messages import (
    Attributes,
    Birth,
    BlockRecord,
    Commit,
    Lag,
    LagCount,
    Milestone,
    Opened,
    RecentBlocks,
    Reference,
    Renewal,
    SparsePage,
    Ticket,
)


class BookkeepingMethods:
    """What the metadata server offers to the mediator: heartbeats, commits, blocks and witnesses, counts."""

    def renew(self, session: int) -> int:
        """Keep a session alive; return this server's start epoch. Raises SessionUnknown."""
        raise NotImplementedError

    def renew_alone(self, session: int) -> Renewal:
        """Keep a session alive as `renew` does; learn whether it is alone. Raises SessionUnknown."""
        raise NotImplementedError

    def commit(
        self,
        ticket: Ticket,
        ino: int,
        commit: Commit,
        lag: list[Lag] | None = None,
        birth: Birth | None = None,
    ) -> Attributes:
        """Make new extents a file's contents: the one step that makes writes visible.

        Args:
            ticket: makes the call repeatable.
            ino: the file.
            commit: the change.
            lag: which data servers have not taken which of the commit's new blocks; without it all have, or
                may still. It is remembered in the same transaction.
            birth: the file is made, open, by the same transaction, under a number from reserve_inodes,
                unless it is there already. Only while the session is the only one.

        Raises:
            StaleFile, SessionUnknown, InvalidArgument (an extent of an unknown block or outside of its
            block, overlapping extents), FileTooLarge.
            With `birth`: NotAlone, and what NamespaceMethods.create raises.
        """
        raise NotImplementedError

    def blocks(self, after: bytes, limit: int) -> list[BlockRecord]:
        """Return up to `limit` committed blocks in the order of their ids, all greater than `after`."""
        raise NotImplementedError

    def note_lag(self, lag: list[Lag]) -> None:
        """Remember durably that data servers lack blocks; those that are not committed are left out."""
        raise NotImplementedError

    def clear_lag(self, server: int, blocks: list[bytes]) -> None:
        """Say that a data server has these blocks by now."""
        raise NotImplementedError

    def lagging(self, server: int, limit: int, after: bytes = b"") -> list[BlockRecord]:
        """Return up to `limit` blocks that a data server lacks, those that most servers lack first.

        Those up to `after` in this order are left out; all, if it lacks that one no more.
        """
        raise NotImplementedError

    def lacking_servers(self, blocks: list[bytes]) -> list[int]:
        """Return for each block how many data servers are known to lack it."""
        raise NotImplementedError

    def lag_counts(self) -> list[LagCount]:
        """Return how much each data server lags behind; those that do not are left out."""
        raise NotImplementedError

    def blocks_at_risk(self, spared: int) -> int:
        """Return how many committed blocks more than `spared` data servers are known to lack.

        Raises:
            InvalidArgument: `spared` is negative.
        """
        raise NotImplementedError

    def recent_blocks(self) -> RecentBlocks:
        """Return the blocks committed last: a killed mediator may not have said who did not take them."""
        raise NotImplementedError

    def vouch_recent(self) -> None:
        """Say that what was committed before this server's start is known to be held, or noted as lag."""
        raise NotImplementedError

    def take_milestone(self) -> Milestone:
        """Return how far the database is; one further if anything was changed since it was asked last.

        It is on disk before it is answered. For data servers to keep.

        Raises:
            Busy: it is not known yet whether the database is an older one (`compare_milestones`).
        """
        raise NotImplementedError

    def compare_milestones(self, kept: list[Milestone], enough: bool) -> int:
        """Tell what data servers have kept; return when the database was found to be an older one, if it was.

        If it is found now, the server ends all sessions, raises its numbers and begins anew: nothing is
        deleted then that the database does not know. Until it was told that there is nothing newer by
        `enough` (at least Qr) servers, only garbage that it knows is collectable.

        Returns:
            The time since when it counts as an older one, in nanoseconds since 1970; 0 if it does not.

        Raises:
            Busy: it is an older one, and begins anew.
        """
        raise NotImplementedError

    def small_files(self, inodes: list[int]) -> list[Opened | None]:
        """Tell of several files what open would, but open none of them.

        None stands for what does not exist, or is no file of one small block.

        Raises:
            InvalidArgument: more than SMALL_FILES_AT_ONCE files.
        """
        raise NotImplementedError

    def witnesses(self, blocks: list[bytes]) -> list[BlockRecord | None]:
        """Return the committed record of each block, None where there is none."""
        raise NotImplementedError

    def garbage(self, limit: int, min_age_ms: int, after: bytes = b"") -> list[bytes]:
        """Return up to `limit` blocks that no file refers to since `min_age_ms` at least, oldest first.

        Those up to `after` in this order are left out, if that is garbage still.
        """
        raise NotImplementedError

    def forget(self, blocks: list[bytes]) -> None:
        """Say that all data servers have deleted these garbage blocks."""
        raise NotImplementedError

    def collectable(self, blocks: list[bytes]) -> list[bytes]:
        """Return those of `blocks` that may be deleted: garbage, or of a dead session and never committed."""
        raise NotImplementedError

    def sparse_blocks(self, after: bytes, limit: int, min_age_ms: int) -> SparsePage:
        """Look at up to `limit` blocks with ids greater than `after`; return those that are mostly dead.

        Blocks of files that changed within the last `min_age_ms` are left out.
        """
        raise NotImplementedError

    def exchange_block(self, session: int, old: bytes, references: list[Reference], new: BlockRecord) -> bool:
        """Let extents of `old` refer to a new block instead, which has their bytes one after the other.

        Returns:
            False if one of them is not as told any more; nothing is changed then.

        Raises:
            InvalidArgument, SessionUnknown.
        """
        raise NotImplementedError

    def referenced_bytes(self) -> int:
        """Return how many bytes of blocks the files refer to. It looks at every file."""
        raise NotImplementedError

    def note_repairs(self, entries: list[dict[str, Any]]) -> None:
        """Append to the ledger of repairs, which is bounded: the oldest go. Raises InvalidArgument."""
        raise NotImplementedError

    def ledger(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` entries of the ledger of repairs, newest first."""
        raise NotImplementedError

    def files_of_block(self, block: bytes) -> list[int]:
        """Return the inodes whose contents refer to a block."""
        raise NotImplementedError

    def paths_of(self, ino: int, limit: int) -> list[bytes]:
        """Return up to `limit` paths (from /) by which an inode can be reached."""
        raise NotImplementedError

    def counts(self) -> dict[str, Any]:
        """Return how many inodes, entries, blocks, block bytes, garbage blocks and sessions there are.

        "changes" is another text once anything was changed in the database, "database" the same in all its
        copies and in no other one; "fenced" tells whether blocks that it does not know are kept.
        """
        raise NotImplementedError

    def answered(self, ticket: Ticket) -> bool:
        """Tell whether this very call was carried out, and its answer is kept for when it is sent again."""
        raise NotImplementedError

    def begin_check(self) -> int:
        """Begin to check all invariants of the database, in the background; return the check's number.

        What is checked is the database as it is at this moment. Nothing waits for it, and nothing is changed.

        Raises:
            Busy: another check is running.
        """
        raise NotImplementedError

    def check_progress(self, check: int) -> dict[str, Any]:
        """Tell how far a check is.

        Returns:
            "state" ("running", "done" or "failed"), "checking" (a check's name), "done" and "total" (how many
            checks), "error" (why it failed, else ""), and, when it is done, "findings", each {"check": its
            name, "row": the row that breaks its rule}.

        Raises:
            NotFound: only the newest check is known.
        """
        raise NotImplementedError

    def begin_copy(self) -> int:
        """Begin to copy the database as it is now, in the background; return the copy's number.

        Raises:
            Busy: another copy is being made, or read.
            NoSpace: there is no room for it beside the database.
        """
        raise NotImplementedError

    def copy_progress(self, copy: int) -> dict[str, Any]:
        """Tell how far a copy is.

        Returns:
            "state" ("running", "done" or "failed"), "done" and "total" (pages), "bytes" and "copied_ns" (when
            it is done), "changes" (as `counts` told it at that moment), and "error" (why it failed, else "").

        Raises:
            NotFound: only the newest copy is known.
        """
        raise NotImplementedError

    def read_copy(self, copy: int, offset: int, length: int) -> bytes:
        """Return up to 1 MiB of a copy that is done; less at its end. Raises NotFound, InvalidArgument."""
        raise NotImplementedError

    def drop_copy(self, copy: int) -> None:
        """Say that a copy is not needed any more."""
        raise NotImplementedError
