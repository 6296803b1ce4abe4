"""The indexes of data servers, damaged: caches, which must be built anew and take nothing with them.

In some lives most of one is damaged in the end, while its server runs: what is damaged of others is little,
and often built anew by a restart before anything is looked up there. One thread.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from wire.blocking import BlockingClient
from wire.errors import QuorumfsError
from wire.methods import DataMethods

if TYPE_CHECKING:
    from tests.sim.cluster import World

SECTOR_BYTES = 512
"""What SQLite writes is torn between any two of these."""
PAGE_BYTES, LOG_HEAD_BYTES = 4096, 32
LIVES_WITH = 0.2
NOTICE_SECONDS = 60.0


def damage(index: Path, rng: random.Random) -> None:
    """Write zeros or others of its own sectors over some sectors of an index or its log."""
    files = [file for file in (index, Path(f"{index}-wal")) if file.exists()]
    with rng.choice(files).open("r+b") as file:
        sectors = os.fstat(file.fileno()).st_size // SECTOR_BYTES
        for _ in range(rng.randrange(1, 5) if sectors else 0):
            file.seek(rng.randrange(sectors) * SECTOR_BYTES)
            other = file.read(SECTOR_BYTES) if rng.random() < 0.5 else bytes(SECTOR_BYTES)
            file.seek(rng.randrange(sectors) * SECTOR_BYTES)
            file.write(other)


def ruin(index: Path) -> None:
    """Write zeros over all pages of an index but the first, and over all of its log but the head."""
    for file, kept in ((index, PAGE_BYTES), (Path(f"{index}-wal"), LOG_HEAD_BYTES)):
        if file.exists() and (size := file.stat().st_size) > kept:
            with file.open("r+b") as opened:
                opened.seek(kept)
                opened.write(bytes(size - kept))


def ruin_one(world: World) -> str | None:
    """In some lives, ruin the index of a data server that runs; say so if it goes on with it."""
    if world.rng.random() >= LIVES_WITH:
        return None
    place = world.rng.choice(world.config.data_servers)
    name = f"data-{place.number}"
    world.note("fault", f"most of the index of {name} is damaged")
    world.disks[name].index_damaged = True
    for index in place.directory.rglob("index.sqlite"):
        ruin(index)
    # SQLite may have all of it in memory still, and is right then.
    until, error = world.loop.now + NOTICE_SECONDS, ""
    with contextlib.closing(BlockingClient([place.listen])) as client:
        while world.loop.now < until:
            try:
                client.call(10.0, DataMethods.inventory, b"", 4096)
                error = ""
            except QuorumfsError as refused:
                error = refused.message
            world.scheduler.sleep(1.0)
    return f"{name} goes on with a damaged index: {error}" if error else None
