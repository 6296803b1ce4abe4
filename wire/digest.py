"""The digest of a block, and of a part of it. Pure functions, safe in any thread.

A block of at most one piece (16 KiB) has the BLAKE3 digest of its bytes; a longer one has the
BLAKE3 digest of the list of its pieces' digests, so that some pieces can be verified alone.
Why pieces of this length: docs/decisions/0029.
The length is always checked beside the digest: a short block may equal a list of digests.
Source: https://github.com/BLAKE3-team/BLAKE3-specs
"""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

Buffer = bytes | bytearray | memoryview

DIGEST_BYTES = 32
PIECE_BYTES = 16 * 1024
BLOCK_BYTES = 1024 * 1024
"""The longest a block may be."""


def piece_count(length: int) -> int:
    """Return how many pieces a block of `length` bytes has (an empty block has none)."""
    return -(-length // PIECE_BYTES)


def piece_digest(piece: Buffer) -> bytes:
    """Return the digest of one piece's bytes."""
    return blake3(piece).digest()


def piece_digests(data: Buffer) -> bytes:
    """Return the joined digests of the pieces of `data`, or b"" if it has at most one piece."""
    if len(data) <= PIECE_BYTES:
        return b""
    view = memoryview(data)
    return b"".join(
        blake3(view[start : start + PIECE_BYTES]).digest() for start in range(0, len(view), PIECE_BYTES)
    )


def block_digest(data: Buffer) -> bytes:
    """Return the digest of a whole block."""
    return blake3(data if len(data) <= PIECE_BYTES else piece_digests(data)).digest()


def digest_of_list(digests: bytes) -> bytes:
    """Return the digest of a block from the joined digests of its (two or more) pieces."""
    return blake3(digests).digest()


def part_matches(witness: bytes, length: int, first_piece: int, joined_digests: bytes, data: Buffer) -> bool:
    """Tell whether `data`, the pieces from `first_piece` on of a block, is what `witness` stands for.

    Args:
        witness: the committed digest of the whole block.
        length: the committed length of the whole block, in bytes.
        first_piece: the index of the first piece in `data`.
        joined_digests: the digests of all pieces of the block; may be empty if `data` is all of it.
        data: one or more whole pieces (the block's last piece may be short).
    """
    if not joined_digests or length <= PIECE_BYTES:
        return first_piece == 0 and len(data) == length and block_digest(data) == witness
    if len(joined_digests) != piece_count(length) * DIGEST_BYTES or digest_of_list(joined_digests) != witness:
        return False
    start = first_piece * PIECE_BYTES
    if start + len(data) > length or (len(data) % PIECE_BYTES and start + len(data) != length):
        return False
    claimed = joined_digests[first_piece * DIGEST_BYTES :]
    return all(
        claimed[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] == piece_digest(piece)
        for index, piece in enumerate(_pieces(memoryview(data)))
    )


def _pieces(view: memoryview) -> Iterable[memoryview]:
    return (view[start : start + PIECE_BYTES] for start in range(0, len(view), PIECE_BYTES))
