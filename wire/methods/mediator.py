"""What the mediator offers to clients besides NamespaceMethods: blocks by quorum, and a look at itself."""

from __future__ import annotations

from typing import Any

from wire.digest import Buffer
from wire.messages import Attributes, Birth, BlockPart, BlockRecord, Commit, Heartbeat, Opened, Ticket, Usage


class MediatorMethods:
    """The quorum as one service."""

    def heartbeat(self, session: int) -> Heartbeat:
        """Keep a session alive; learn whether writes are possible now. Raises SessionUnknown."""
        raise NotImplementedError

    def put_block(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        """Put a block to all data servers; succeed when at least Qw hold it.

        Raises:
            WriteRefused: fewer than Qw data servers are up; nothing was sent.
            WriteFailed: fewer than Qw took it in time; `detail` says who answered what.
            DigestMismatch.
        """
        raise NotImplementedError

    def read_block(self, ino: int, witness: BlockRecord, first_piece: int, piece_count: int) -> BlockPart:
        """Return pieces of a block after the vote (piece_count 0: all from first_piece on).

        Args:
            ino: the file on whose behalf it is read, to look up a refusal later.
            witness: the block as the file's map gave it.
            first_piece: index of the first piece, of 16 KiB.
            piece_count: how many pieces.

        Raises:
            ReadRefused: `detail` says who voted what.
        """
        raise NotImplementedError

    def open_and_read(self, session: int, ino: int, start: int, names: list[bytes], closes: int) -> Opened:
        """Open a file for reading as NamespaceMethods.open does, and read it if it is one small block.

        The vote is held after the file was opened. If it does not go well, or takes long, the file comes
        without the bytes: read_block says why.

        Raises what open raises.
        """
        raise NotImplementedError

    def read_small_files(self, inodes: list[int]) -> list[Opened | None]:
        """Look at several files as open does, but open none of them; read those that are one small block.

        The votes on all blocks are held at once. What does not exist, or is no file of one small
        block, is None; a file whose vote does not go well, or takes long, comes without the bytes.

        Raises:
            InvalidArgument: more than SMALL_FILES_AT_ONCE files.
        """
        raise NotImplementedError

    def sync_blocks(self, blocks: list[bytes]) -> None:
        """Make each of these blocks durable on at least Qw data servers.

        Raises:
            WriteFailed: fewer than Qw hold one of them durably.
        """
        raise NotImplementedError

    def write_file(
        self,
        ticket: Ticket,
        ino: int,
        commit: Commit,
        payload: list[Buffer],
        birth: Birth | None = None,
        may_tell: bool = False,
    ) -> Attributes | None:
        """Put the last len(payload) blocks of `commit.blocks`, then commit: a small file in one call.

        With `birth` the same transaction makes the file, see BookkeepingMethods.commit.

        With `may_tell` nothing is committed if all data servers have taken the blocks, and the answer is
        None: the client makes the commit itself, with this ticket (wire.ring, or this call once more).

        With `commit.durable` the payload's blocks are durable on Qw data servers before the commit.
        Blocks put before must have been made durable by sync_blocks.

        Raises:
            WriteRefused, WriteFailed, and what commit raises.
        """
        raise NotImplementedError

    def usage(self) -> Usage:
        """Tell the room in the file system: the least of the data servers' room."""
        raise NotImplementedError

    def explain(self, ino: int) -> dict[str, Any]:
        """Tell for each block of a file which data server holds it and how each votes now.

        Returns:
            "ino", "paths", "size", "quorum" {"N", "Qr", "Qw"}, "last_refusal" (None or {"when_ns",
            "operation", "message", "detail"}), and "blocks", each {"block" and "digest" in hex, "length",
            "offset", "outcome", "verdicts": {"1": "good" or "corrupt" or "missing" or "down", ...}}.
        """
        raise NotImplementedError

    def scrub(self, server: int, now: bool) -> list[dict[str, Any]]:
        """Return how far the scrub of a data server is (0: of each known); with `now`, begin it first.

        Each has "server", "state" ("running" or "done"), "total_blocks", "total_bytes", "checked",
        "checked_bytes", "corrupt", "missing", "repaired", "seconds", "begun_ns", "ended_ns", "last_full_ns".

        Raises:
            InvalidArgument: there is no such server, or it is down.
        """
        raise NotImplementedError

    def ledger(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest repairs, newest first.

        Each has "when_ns", "block", "files", "server", "verdict" ("corrupt" or "missing"), "digest_before"
        ("" if it told none), "digest_after" and "why".
        """
        raise NotImplementedError

    def refill(self, server: int) -> dict[str, Any]:
        """Begin (or look at) the refill of a data server; returns its progress."""
        raise NotImplementedError
