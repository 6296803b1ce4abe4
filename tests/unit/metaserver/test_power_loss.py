"""The metadata server after a power loss: what a sync covered is there, the rest is whole or absent.

A disk may have done any of the writes since the last sync, in any order, sector by sector. Files of the
directory are put together so, and opened again.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.metaserver.harness import Harness
from wire.messages import Extent

SECTOR_BYTES = 512
ROUNDS = 25

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


@pytest.mark.parametrize("disk", [any_order, torn, nothing])
def test_all_that_was_synced_is_there_and_the_rest_is_whole_or_absent(tmp_path: Path, disk: Disk) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    (tmp_path / "live").mkdir()
    meta = Harness(tmp_path / "live")
    log = meta.path.with_name("meta.sqlite-wal")
    done: list[bytes] = []
    lost = 0
    for number in range(ROUNDS):
        for _ in range(chance.randrange(1, 5)):
            done.append(b"file %d" % len(done))
            change(meta, done[-1])
        meta.wait(meta.log.sync())
        durable = len(done)
        synced = log.read_bytes()
        for _ in range(chance.randrange(1, 5)):
            done.append(b"file %d" % len(done))
            change(meta, done[-1])
        crashed = tmp_path / f"crashed-{number}"
        crashed.mkdir()
        shutil.copy(meta.path, crashed)
        (crashed / log.name).write_bytes(after_power_loss(chance, synced, log.read_bytes(), disk))
        again = Harness(crashed)
        whole = [is_whole(again, name) for name in done]
        assert all(whole[:durable]), f"round {number}: a durable file is gone"
        present = whole[durable:]
        assert present == sorted(present, reverse=True), f"round {number}: a later file without an earlier"
        lost += present.count(False)
        again.close()  # checks every invariant
        shutil.rmtree(crashed)
        if chance.random() < 0.3:  # the log starts over: older frames lie behind the new ones
            meta.store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    assert lost, "no write was ever dropped: the test tests nothing"
    meta.close()
