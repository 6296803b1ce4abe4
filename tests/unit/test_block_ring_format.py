"""The format of the ring of blocks: what is whole is read back, anything else is nothing."""

from __future__ import annotations

import pytest

from wire.block_ring import (
    MOST_BYTES,
    RECORD_BYTES,
    RING_BYTES,
    SLOT_BYTES,
    SLOTS,
    GivenBlock,
    pack_record,
    record_offset,
    unpack_record,
)
from wire.ring_head import HEAD_BYTES

GIVEN = GivenBlock(7, 2**62, MOST_BYTES, bytes(range(16)), bytes(range(32)))


def test_a_record_is_read_back() -> None:
    assert len(pack_record(GIVEN)) == RECORD_BYTES
    assert unpack_record(pack_record(GIVEN), 7, 2**62) == GIVEN


def test_that_of_another_number_or_term_is_none() -> None:
    packed = pack_record(GIVEN)
    assert unpack_record(packed, 7 + SLOTS, 2**62) is None
    assert unpack_record(packed, 7, 2**62 - 1) is None


@pytest.mark.parametrize("at", range(RECORD_BYTES))
def test_a_damaged_one_is_none(at: int) -> None:
    packed = bytearray(pack_record(GIVEN))
    packed[at] ^= 1
    assert unpack_record(bytes(packed), 7, 2**62) is None


@pytest.mark.parametrize("length", range(RECORD_BYTES))
def test_a_part_of_one_is_none(length: int) -> None:
    assert unpack_record(pack_record(GIVEN)[:length], 7, 2**62) is None


def test_one_of_too_many_bytes_is_none() -> None:
    assert unpack_record(pack_record(GIVEN._replace(length=MOST_BYTES + 1)), 7, 2**62) is None


def test_slots_follow_the_head_and_do_not_overlap() -> None:
    ends = sorted(record_offset(number) + RECORD_BYTES for number in range(SLOTS))
    begins = [end - SLOT_BYTES for end in ends]
    assert begins == [HEAD_BYTES, *ends[:-1]] and ends[-1] == RING_BYTES
    assert record_offset(7) == record_offset(7 + SLOTS)
    assert record_offset(0) - MOST_BYTES == HEAD_BYTES
