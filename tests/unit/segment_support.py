"""Blocks with contents that follow from their numbers, and harm done behind the back of a store on disk."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from dataserver.segments import SegmentStore
from wire.digest import PIECE_BYTES, block_digest

SMALL = 256 * 1024
"""Segments of so many bytes, so that a few blocks fill several."""


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def content(number: int) -> bytes:
    dice = random.Random(number)
    return dice.randbytes(dice.choice([10, 4096, 9000, PIECE_BYTES + 5, 150_000, 300_001]))


def put(store: SegmentStore, *numbers: int) -> None:
    for number in numbers:
        store.put(block_id(number), block_digest(content(number)), content(number))


def check(store: SegmentStore, *numbers: int) -> None:
    """The store holds exactly these blocks, all good, in every way of asking."""
    assert [record.block for record in store.inventory(b"", 4096)] == [block_id(n) for n in sorted(numbers)]
    assert store.count() == len(numbers)
    assert store.status()["bytes_live"] == sum(len(content(number)) for number in numbers)
    for number in numbers:
        assert store.get(block_id(number), 0, 0).data == content(number)
        assert store.digest(block_id(number), 0, 0) == block_digest(content(number))


def abandon(directory: Path, to: Path) -> Path:
    """Copy a directory as a kill -9 would leave it now."""
    shutil.copytree(directory, to)
    return to


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def damage_header(store: SegmentStore, number: int) -> None:
    place = store.locate(block_id(number))
    overwrite(place.path, place.header_offset + 20, b"\xee" * 8)


def damage_payload(store: SegmentStore, number: int) -> None:
    place = store.locate(block_id(number))
    overwrite(place.path, place.payload_offset + 5, b"\xee\xee\xee")


def remove_index(directory: Path) -> None:
    for file in directory.glob("index.sqlite*"):
        file.unlink()
