"""What a data server offers: blocks in, blocks and digests out."""

from __future__ import annotations

from typing import Any

from wire.digest import Buffer
from wire.messages import BlockPart, BlockRecord, BlockRing, Milestone, SmallReplicas, VotedPart


class DataMethods:
    """A data server knows no files, no quorum and no other server."""

    def put(self, block: bytes, digest: bytes, data: Buffer, durable: bool) -> None:
        """Keep a block. A repeated put of the same bytes succeeds and changes nothing.

        Args:
            block: its id, 16 bytes.
            digest: what wire.digest.block_digest(data) must be.
            data: its bytes, at most 1 MiB.
            durable: answer only after the bytes are on disk.

        Raises:
            DigestMismatch: the bytes that arrived are not those that were sent.
            BlockConflict: the id is taken by other bytes; they are left as they are.
            NoSpace: the disk is full; nothing was kept.
        """
        raise NotImplementedError

    def open_ring(self) -> BlockRing:
        """Return a ring into which the caller alone may write blocks, as `put` takes them (wire.block_ring).

        It may be ended at any time: the caller looks at its head again when it has written.
        """
        raise NotImplementedError

    def get(self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None) -> BlockPart:
        """Return pieces of a block as they are on disk now, with the piece digests that its record holds.

        Whether the bytes are right is for the caller to find out, who holds them against the witness.

        Args:
            block: its id.
            first_piece: the first of the pieces that are wanted.
            piece_count: how many; 0 means all from `first_piece` on.
            room: memory of a caller beside, in which the bytes are put if they fit (see wire.lending);
                anything else is ignored.

        Raises:
            BlockMissing, BlockDamaged.
        """
        raise NotImplementedError

    def digest(self, block: bytes, first_piece: int, piece_count: int) -> bytes:
        """Vote: return the block's digest with these pieces' digests computed from the bytes now.

        `piece_count` 0 means all from `first_piece` on. It equals the witness only if the asked
        pieces are right on disk.

        Raises:
            BlockMissing, BlockDamaged.
        """
        raise NotImplementedError

    def digests(self, parts: list[VotedPart]) -> list[bytes | None]:
        """Vote on many blocks, or pieces of them, at once, in the order in which they lie on disk.

        Returns:
            For each of `parts` what `digest` would: None if the block is not here, b"" if its record cannot
            be trusted.
        """
        raise NotImplementedError

    def read_small(self, sent: list[bytes], voted: list[bytes]) -> SmallReplicas:
        """Send the bytes of some small blocks and vote on others, reading them in the order they lie on disk.

        Args:
            sent: blocks whose bytes are wanted.
            voted: blocks whose digests are wanted, computed from the bytes now.

        Raises:
            BadRequest: more than SMALL_FILES_AT_ONCE blocks.
        """
        raise NotImplementedError

    def keep_scrub(self, state: dict[str, Any]) -> None:
        """Keep how far a scrub is, for `status` to tell as "scrub". Raises BadRequest, NoSpace."""
        raise NotImplementedError

    def keep_milestone(self, milestone: Milestone) -> None:
        """Keep, durably, how far a metadata database is at least; a lower number changes nothing.

        Raises:
            BadRequest, NoSpace.
        """
        raise NotImplementedError

    def milestones(self) -> list[Milestone]:
        """Return the highest milestone that was kept of each metadata database."""
        raise NotImplementedError

    def repair(self, block: bytes, digest: bytes, data: Buffer, note: str) -> str:
        """Put a verified copy where this server's own copy lost the vote or is missing.

        The losing copy is moved to quarantine with the note. If this server's copy matches
        `digest` after all, it is left alone.

        Returns:
            "good" (nothing was wrong), "filled" (it was missing) or "replaced" (it was corrupt).

        Raises:
            DigestMismatch, NoSpace: as for put; the old copy is then left where it was.
        """
        raise NotImplementedError

    def quarantine_list(self, after: str, limit: int) -> list[dict[str, Any]]:
        """Return what is known of copies that lost a vote, in the order of their names, all after `after`.

        Each has "name", "bytes", "block", "when", "expected_digest", "found_digest" and "note".
        """
        raise NotImplementedError

    def quarantine_read(self, name: str) -> bytes:
        """Return a copy in quarantine: the record's header (4096 bytes), then the block's bytes.

        Raises:
            BlockMissing, InvalidArgument.
        """
        raise NotImplementedError

    def quarantine_remove(self, names: list[str]) -> int:
        """Destroy copies in quarantine; return how many were here. Raises InvalidArgument."""
        raise NotImplementedError

    def delete(self, blocks: list[bytes]) -> int:
        """Remove blocks; those that are not here are no error. Returns how many were removed."""
        raise NotImplementedError

    def sync(self, blocks: list[bytes]) -> list[bytes]:
        """Make everything put so far durable. Returns those of `blocks` that were not here by then."""
        raise NotImplementedError

    def inventory(self, after: bytes, limit: int) -> list[BlockRecord]:
        """Return up to `limit` records in the order of their ids, all greater than `after` (b"" to begin)."""
        raise NotImplementedError

    def count(self) -> int:
        """Return how many blocks are here."""
        raise NotImplementedError


class LabMethods:
    """Faults on demand, offered only with --lab. Keys are block ids in hex, as people see them."""

    def list_contents(self) -> list[str]:
        """Return the ids of all blocks here, in hex, in order."""
        raise NotImplementedError

    def print_content(self) -> str:
        """Print each block's id, length and verdict on this server's standard error, and return the text."""
        raise NotImplementedError

    def corrupt(self, key: str, kind: str = "flip") -> str:
        """Damage a block on disk, behind the store's back.

        Args:
            key: the block's id in hex.
            kind: "flip" (one bit), "torn" (cut short), "zeros", "swap" (another block's bytes), or "lie"
                (bytes and their digests replaced by the same wrong content on every server asked).

        Returns:
            What was done, in words.

        Raises:
            BlockMissing, InvalidArgument.
        """
        raise NotImplementedError

    def terminate(self) -> bool:
        """End this process at once, as a crash would. The answer is sent first."""
        raise NotImplementedError

    def restart(self, blank: bool = False) -> bool:
        """Start this process anew, with `blank` on an emptied directory. The answer is sent first."""
        raise NotImplementedError
