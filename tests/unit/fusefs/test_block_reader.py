"""Bytes of blocks from the cache: right wherever they came from, and not copied where they came at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from fusefs.patience import Patience
from fusefs.readahead import BlockReader, follows
from wire.digest import PIECE_BYTES, block_digest, piece_digests
from wire.messages import BlockPart, BlockRecord

SIX_PIECES = random.Random(4).randbytes(5 * PIECE_BYTES + 1000)
RECORD = BlockRecord(b"a block", len(SIX_PIECES), block_digest(SIX_PIECES))


class OneBlock:
    """What BlockReader uses of a BlockPort: there is one block. `asked` is what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def read_block(self, _ino: int, _witness: BlockRecord, first_piece: int, piece_count: int) -> BlockPart:
        self.asked.append((first_piece, piece_count))
        start = first_piece * PIECE_BYTES
        data = SIX_PIECES[start : start + piece_count * PIECE_BYTES]
        return BlockPart(len(SIX_PIECES), piece_digests(SIX_PIECES), data)


@pytest.fixture
def blocks() -> OneBlock:
    return OneBlock()


@pytest.fixture
def reader(blocks: OneBlock) -> Iterator[BlockReader]:
    reader = BlockReader(blocks, 1 << 22, Patience())  # type: ignore[arg-type]
    yield reader
    reader.close()


def test_a_block_that_came_as_a_whole_is_one_part_without_a_copy(
    reader: BlockReader, blocks: OneBlock
) -> None:
    (fetched,) = reader.read(1, RECORD, 100, 10, True)
    (again,) = reader.read(1, RECORD, 0, len(SIX_PIECES), True)
    assert again == SIX_PIECES
    assert again.obj is fetched.obj
    assert len(blocks.asked) == 1


def test_any_range_is_right_whatever_came_together(reader: BlockReader, blocks: OneBlock) -> None:
    reader.read(1, RECORD, 4 * PIECE_BYTES + 5, PIECE_BYTES, False)
    reader.read(1, RECORD, PIECE_BYTES, 2 * PIECE_BYTES, False)
    reader.read(1, RECORD, 3 * PIECE_BYTES, 1, False)
    reader.read(1, RECORD, 7, 1, False)
    asked = [(4, 2), (1, 2), (3, 1), (0, 1)]
    assert blocks.asked == asked
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(300):
        start, end = sorted(chance.sample(range(len(SIX_PIECES) + 1), 2))
        parts = reader.read(1, RECORD, start, end - start, False)
        assert b"".join(parts) == SIX_PIECES[start:end], f"seed {seed}: [{start}, {end})"
        assert len(parts) <= len(asked)
    assert blocks.asked == asked  # all the rest came from the cache


KIB, MIB = 1024, 1024 * 1024


@pytest.mark.parametrize(
    ("offset", "length", "goes_on"),
    [
        (8 * MIB, 4 * KIB, True),
        (8 * MIB, MIB, True),
        (9 * MIB, MIB, True),  # the kernel sends the one before it later
        (7 * MIB, MIB, True),  # this is that one
        (3 * MIB, MIB, False),
        (11 * MIB, MIB, False),
        (8 * MIB + 100 * KIB, 4 * KIB, False),  # near by chance
        (7 * MIB, 4 * KIB, False),
    ],
)
def test_which_reads_go_on_with_the_run_before(offset: int, length: int, goes_on: bool) -> None:
    assert follows(4 * MIB, 8 * MIB, offset, length) is goes_on


def test_a_first_read_goes_on_with_nothing() -> None:
    assert not follows(-1, -1, 0, MIB)
