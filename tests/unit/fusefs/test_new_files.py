"""Which first commits are told without a call: those that the metadata server cannot refuse."""

from __future__ import annotations

import pytest

from fusefs.new_files import attributes_of, new_file
from wire.messages import AttributeChanges, Birth, BlockRecord, Commit, Extent, Ticket

BLOCK = b"b" * 16
RECORD = BlockRecord(BLOCK, 4096, b"d" * 32)
EXTENT = Extent(0, 4096, BLOCK, 0)
COMMIT = Commit(None, [EXTENT], 4096, [RECORD], AttributeChanges(atime_ns=44, mtime_ns=55), durable=False)
EMPTY = Commit(None, [], 0, [], AttributeChanges(atime_ns=44, mtime_ns=55), durable=False)
BIRTH = Birth(1, b"a", 0o104755, 7, 8)
TICKET = Ticket(3, 4, 5)


def test_one_whole_block_is_told() -> None:
    told = new_file(TICKET, 9, COMMIT, BIRTH, 66)
    assert told is not None
    assert (told.slot, told.sequence, told.block, told.digest) == (4, 5, BLOCK, b"d" * 32)
    made = attributes_of(told)
    assert (made.ino, made.mode, made.nlink, made.uid, made.gid) == (9, 0o104755, 1, 7, 8)
    assert (made.size, made.allocated_bytes, made.version) == (4096, 4096, 2)
    assert (made.atime_ns, made.mtime_ns, made.ctime_ns) == (44, 55, 66)


@pytest.mark.parametrize("cut", [None, 0, 99])
def test_nothing_is_told_too(cut: int | None) -> None:
    told = new_file(TICKET, 9, EMPTY._replace(cut=cut), BIRTH, 66)
    assert told is not None
    made = attributes_of(told)
    assert (made.size, made.allocated_bytes, made.version) == (0, 0, 1)


OTHER = BlockRecord(b"o" * 16, 10, b"e" * 32)


@pytest.mark.parametrize(
    "commit",
    [
        COMMIT._replace(durable=True),
        COMMIT._replace(changes=AttributeChanges()),
        COMMIT._replace(changes=AttributeChanges(mtime_ns=55)),
        COMMIT._replace(extend_to=5000),
        COMMIT._replace(append_from=0),
        COMMIT._replace(extents=[EXTENT._replace(offset=4096)], extend_to=8192),
        COMMIT._replace(extents=[EXTENT._replace(length=4000)], extend_to=4000),
        COMMIT._replace(extents=[EXTENT._replace(block_offset=1, length=4095)]),
        COMMIT._replace(extents=[EXTENT, Extent(4096, 10, None, 0)]),
        COMMIT._replace(extents=[]),
        COMMIT._replace(blocks=[RECORD, OTHER]),
        COMMIT._replace(blocks=[OTHER]),
        EMPTY._replace(extend_to=5),
        EMPTY._replace(extents=[Extent(0, 5, None, 0)], extend_to=5),
    ],
)
def test_all_else_takes_a_call(commit: Commit) -> None:
    assert new_file(TICKET, 9, commit, BIRTH, 66) is None


@pytest.mark.parametrize("birth", [BIRTH._replace(name=b"x" * 256), BIRTH._replace(mode=0o1000000)])
def test_what_may_be_refused_takes_a_call(birth: Birth) -> None:
    assert new_file(TICKET, 9, COMMIT, birth, 66) is None
