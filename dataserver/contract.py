"""The contract of a block store, met by `segments.SegmentStore` (on disk) and `memory.MemoryStore`.

One suite (tests/contract/test_block_store.py) holds both to it. All methods are plain calls that
may block on the disk, and may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from wire.digest import BLOCK_BYTES, DIGEST_BYTES, Buffer, digest_of_list, piece_digest, piece_digests
from wire.errors import BadRequest, DigestMismatch, MessageTooLarge
from wire.messages import BLOCK_ID_BYTES, BlockPart, BlockRecord

INVENTORY_LIMIT = 4096
"""The most records that one page of an inventory holds, whatever was asked for."""


class BlockStore(Protocol):
    """Immutable blocks under ids that are never used again. Errors are those of wire.errors."""

    def put(self, block: bytes, digest: bytes, data: Buffer) -> None:
        """Keep a block; durable after the next `sync`.

        The same id with the same digest again changes nothing (but heals a copy that is damaged by now).

        Raises:
            DigestMismatch, BlockConflict, NoSpace, MessageTooLarge (over 1 MiB), BadRequest.
        """

    def take(self, block: bytes, digest: bytes, data: Buffer) -> None:
        """As `put`, of a block that was promised to be kept: what is reserved for repairs may be used."""

    def has_room_for(self, blocks: int, length: int) -> bool:
        """Tell whether so many blocks of so many bytes can certainly be taken, whatever is put meanwhile."""

    def get(self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None) -> BlockPart:
        """Return pieces as they are now (piece_count 0: all from first_piece on), with the recorded digests.

        The bytes may be put in `room`, a part of which the answer then has as its data.
        Raises BlockMissing, BlockDamaged.
        """

    def digest(self, block: bytes, first_piece: int, piece_count: int) -> bytes:
        """Vote: the digest, with the asked pieces' part computed now. Raises BlockMissing, BlockDamaged."""

    def in_disk_order(self, blocks: Sequence[bytes]) -> list[bytes]:
        """Return the same blocks in the order in which reading them is fastest."""

    def repair(self, block: bytes, digest: bytes, data: Buffer, note: str) -> str:
        """Return "good", "filled" or "replaced"; a losing copy is kept in quarantine with the note.

        Raises:
            DigestMismatch, NoSpace: the old copy is left where it was. MessageTooLarge, BadRequest.
        """

    def delete(self, blocks: Sequence[bytes]) -> int:
        """Remove those of `blocks` that are here; return how many. A delete may be lost by a crash."""

    def sync(self) -> None:
        """Make everything put before this call durable."""

    @property
    def wants_ahead(self) -> bool:
        """Whether syncs would be cheaper after `write_ahead`."""

    @property
    def has_little_unsynced(self) -> bool:
        """Whether little was put since the last sync."""

    @property
    def puts_quickly(self) -> bool:
        """Whether the disk took the last long block in so little time that no thread is worth its while."""

    def write_ahead(self) -> None:
        """Prepare space for the next blocks, so that a sync of them has little to do."""

    def length(self, block: bytes) -> int | None:
        """Return how many bytes were put for a block, whatever they are now; None if it is not here."""

    def inventory(self, after: bytes, limit: int) -> list[BlockRecord]:
        """Return up to `limit` (at most INVENTORY_LIMIT) records by their ids, all greater than `after`."""

    def count(self) -> int:
        """Return how many blocks are here."""

    def status(self) -> dict[str, Any]:
        """Return "blocks", "bytes_live", "quarantined", "free_bytes", "total_bytes", "segments" and
        "damaged_regions"."""

    def maintain(self) -> None:
        """Do the background work that is due: free deleted records, save the index. Call it regularly."""

    def close(self) -> None:
        """Make all durable and let everything go. No call may follow."""


def check_put(block: bytes, digest: bytes, data: Buffer) -> bytes:
    """Check what arrived for `put` and `repair`; return the joined digests of its pieces.

    Raises:
        BadRequest, MessageTooLarge, DigestMismatch.
    """
    check_id(block)
    if len(digest) != DIGEST_BYTES:
        raise BadRequest(f"a digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    if len(data) > BLOCK_BYTES:
        raise MessageTooLarge(f"a block has at most {BLOCK_BYTES} bytes, not {len(data)}")
    pieces = piece_digests(data)
    if (digest_of_list(pieces) if pieces else piece_digest(data)) != digest:
        raise DigestMismatch(f"the bytes that arrived for block {block.hex()} are not those that were sent")
    return pieces


def check_id(block: bytes) -> None:
    """Raise BadRequest unless `block` can be a block's id."""
    if len(block) != BLOCK_ID_BYTES:
        raise BadRequest(f"a block id has {BLOCK_ID_BYTES} bytes, not {len(block)}")


def check_limit(limit: int) -> int:
    """Return how many records a page may have. Raises BadRequest for a limit below 1."""
    if limit < 1:
        raise BadRequest(f"limit {limit}: a page has at least one record")
    return min(limit, INVENTORY_LIMIT)
