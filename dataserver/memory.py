"""A block store in memory, for tests: the contract made plain. Nothing is durable. Any thread may call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from dataserver.contract import check_id, check_limit, check_put
from dataserver.pieces import span_of, vote
from wire.digest import Buffer, block_digest, piece_digests
from wire.errors import BlockConflict, BlockMissing
from wire.messages import BlockPart, BlockRecord


class MemoryStore:
    """Blocks in a dictionary: (digest as put, bytes). Meets contract.BlockStore."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, tuple[bytes, bytes]] = {}
        self._pieces: dict[bytes, bytes] = {}
        """The digests of each block's pieces as put: a record keeps them whatever happens to its bytes."""
        self.quarantine: list[tuple[bytes, bytes, str]] = []
        self._lock = threading.Lock()

    def put(self, block: bytes, digest: bytes, data: Buffer) -> None:
        check_put(block, digest, data)
        with self._lock:
            recorded, _ = self.blocks.get(block, (digest, b""))
            if recorded != digest:
                raise BlockConflict(f"block {block.hex()} is here already, with other bytes")
        self.repair(block, digest, data, "its bytes were damaged when it was put again")

    def take(self, block: bytes, digest: bytes, data: Buffer) -> None:
        self.put(block, digest, data)

    def has_room_for(self, blocks: int, length: int) -> bool:
        return True

    def get(self, block: bytes, first_piece: int, piece_count: int, room: Buffer | None = None) -> BlockPart:
        _, data = self._find(block)
        span = span_of(len(data), first_piece, piece_count)
        part = data[span.start : span.end]
        return BlockPart(len(data), self._pieces[block], part)

    def digest(self, block: bytes, first_piece: int, piece_count: int) -> bytes:
        digest, data = self._find(block)
        span = span_of(len(data), first_piece, piece_count)
        return vote(len(data), digest, self._pieces[block], span, data[span.start : span.end])

    def in_disk_order(self, blocks: Sequence[bytes]) -> list[bytes]:
        return list(blocks)

    def repair(self, block: bytes, digest: bytes, data: Buffer, note: str) -> str:
        check_put(block, digest, data)
        with self._lock:
            old = self.blocks.get(block)
            if old is not None and (old[0], block_digest(old[1])) == (digest, digest):
                return "good"
            if old is not None:
                self.quarantine.append((block, old[1], note))
            self.blocks[block] = (digest, bytes(data))
            self._pieces[block] = piece_digests(data)
            return "filled" if old is None else "replaced"

    def delete(self, blocks: Sequence[bytes]) -> int:
        with self._lock:
            return sum(1 for block in blocks if self.blocks.pop(block, None) is not None)

    def sync(self) -> None:
        pass

    def length(self, block: bytes) -> int | None:
        found = self.blocks.get(block)
        return None if found is None else len(found[1])

    def inventory(self, after: bytes, limit: int) -> list[BlockRecord]:
        with self._lock:
            ids = sorted(block for block in self.blocks if block > after)[: check_limit(limit)]
            return [BlockRecord(block, len(self.blocks[block][1]), self.blocks[block][0]) for block in ids]

    def count(self) -> int:
        return len(self.blocks)

    def status(self) -> dict[str, Any]:
        with self._lock:
            live = sum(len(data) for _, data in self.blocks.values())
        return {
            "blocks": len(self.blocks),
            "bytes_live": live,
            "quarantined": len(self.quarantine),
            "free_bytes": 2**40,
            "total_bytes": 2**40 + live,
            "segments": 0,
            "damaged_regions": 0,
        }

    @property
    def wants_ahead(self) -> bool:
        return False

    @property
    def has_little_unsynced(self) -> bool:
        return True

    @property
    def puts_quickly(self) -> bool:
        return True

    def write_ahead(self) -> None:
        pass

    def maintain(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _find(self, block: bytes) -> tuple[bytes, bytes]:
        check_id(block)
        with self._lock:
            if block not in self.blocks:
                raise BlockMissing(f"block {block.hex()} is not here")
            return self.blocks[block]
