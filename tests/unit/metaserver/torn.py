"""Files as a power loss may leave them, and changes that are there as a whole or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.unit.metaserver.harness import Harness
from wire.messages import Extent

SECTOR_BYTES = 512

Disk = Callable[[random.Random, bytes, bytes, int], bytes]
"""Returns one sector as it is after the power loss: of its synced content, its written one, and where."""


def change(meta: Harness, name: bytes) -> None:
    """One file with contents, in two transactions."""
    file = meta.create(1, name)
    record = meta.new_block(1000)
    meta.commit(file.ino, Extent(0, 1000, record.block, 0), blocks=[record])


def is_whole(meta: Harness, name: bytes) -> bool:
    """Tell whether a file is there with its contents; it may be there without, or not at all."""
    found = meta.look_up(name)
    if found is None or not found.size:
        return False
    (extent,) = meta.service.file_map(found.ino, 0, 10).extents
    return (extent.offset, extent.length, found.size) == (0, 1000, 1000)


def any_order(chance: random.Random, synced: bytes, written: bytes, at: int) -> bytes:
    return chance.choice((synced, written))


def torn(chance: random.Random, synced: bytes, written: bytes, at: int) -> bytes:
    kept = chance.randrange(SECTOR_BYTES)
    return chance.choice((synced, written, written[:kept] + synced[kept:]))


def nothing(chance: random.Random, synced: bytes, written: bytes, at: int) -> bytes:
    return synced


def after_power_loss(chance: random.Random, synced: bytes, written: bytes, disk: Disk) -> bytes:
    """Return a file of which only `synced` is certain, and `written` was on its way."""
    size = max(len(synced), len(written))
    was, new = synced.ljust(size, b"\0"), written.ljust(size, b"\0")
    sectors = []
    for at in range(0, size, SECTOR_BYTES):
        a, b = was[at : at + SECTOR_BYTES], new[at : at + SECTOR_BYTES]
        sectors.append(a if a == b else disk(chance, a, b, at))
    length = chance.randrange(len(synced), size + 1)  # the file's length is a write of its own
    return b"".join(sectors)[:length]
