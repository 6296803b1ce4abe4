"""The format of the ring of changes: what is whole is read back, anything else is nothing."""

from __future__ import annotations

import random

import pytest

from wire.ring import (
    RING_BYTES,
    SLOT_BYTES,
    SLOTS,
    Change,
    Entry,
    NewFile,
    Removal,
    pack_entry,
    slot_offset,
    unpack_entry,
)
from wire.ring_head import HEAD_BYTES, HEAD_READ_BYTES, Head, pack_head, unpack_head

LARGEST = 2**64 - 1
HEAD = Head(b"0" * 36, 7, 2**62, 5, 69)
REMOVAL = Removal(1, 2**40, -5, b"n\xff" * 127 + b"m")
FILE = NewFile(
    slot=1023,
    sequence=LARGEST,
    ino=LARGEST,
    parent=LARGEST,
    mode=0o177777,
    uid=2**32 - 1,
    gid=2**32 - 1,
    length=LARGEST,
    atime_ns=0,
    mtime_ns=-(2**63),
    told_ns=2**63 - 1,
    block=bytes(range(16)),
    digest=bytes(range(32)),
    name=b"n",
)


def test_a_head_is_read_back() -> None:
    assert unpack_head(pack_head(HEAD)) == HEAD
    assert len(pack_head(HEAD)) == HEAD_READ_BYTES <= HEAD_BYTES


@pytest.mark.parametrize("change", [REMOVAL, FILE], ids=["removal", "new file"])
@pytest.mark.parametrize("name", [b"", b"a", b"x" * 255])
def test_a_change_is_read_back_and_fits_into_its_slot(change: Change, name: bytes) -> None:
    entry = Entry(6, 2**62, change._replace(name=name))
    packed = pack_entry(entry)
    assert len(packed) <= SLOT_BYTES
    assert unpack_entry(packed.ljust(SLOT_BYTES, b"?"), 6, 2**62) == entry


def test_that_of_another_number_or_term_is_none() -> None:
    packed = pack_entry(Entry(6, 2**62, REMOVAL))
    assert unpack_entry(packed, 6 + SLOTS, 2**62) is None
    assert unpack_entry(packed, 6, 2**62 + 1) is None


def test_a_part_or_a_flipped_bit_makes_it_none() -> None:
    for packed, unpack in (
        (pack_head(HEAD), unpack_head),
        (pack_entry(Entry(6, 2**62, REMOVAL)), lambda data: unpack_entry(data, 6, 2**62)),
        (pack_entry(Entry(6, 2**62, FILE)), lambda data: unpack_entry(data, 6, 2**62)),
    ):
        assert unpack(b"") is None and unpack(packed[:-1]) is None and unpack(bytes(SLOT_BYTES)) is None
        for bit in random.Random(1).sample(range(8 * len(packed)), 200):
            flipped = bytearray(packed)
            flipped[bit // 8] ^= 1 << bit % 8
            assert unpack(bytes(flipped)) is None, bit


def test_slots_follow_each_other_and_come_round() -> None:
    offsets = [slot_offset(number) for number in range(1, SLOTS + 1)]
    assert len(set(offsets)) == SLOTS and min(offsets) == HEAD_BYTES
    assert max(offsets) + SLOT_BYTES == RING_BYTES
    assert slot_offset(SLOTS + 3) == slot_offset(3)
