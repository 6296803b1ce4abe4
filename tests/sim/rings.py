"""Rings in the simulation: of one machine with the server that owns them, whatever the network does.

A kill leaves a ring as it is; a power loss, which in a real cluster ends those that use it too, ends it
at once, and the machine's next start has another name. Clients are stopped in the middle of a write into one.
One thread.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import dataserver.block_rings
import dataserver.service
import fusefs.ring
import mediator.block_rings
import metaserver.rings
import wire.client_msgpack
from tests.sim.seams import StandIn
from wire.ring_head import HEAD_BYTES

BOOT_FILE = "/proc/sys/kernel/random/boot_id"
RUN_SECONDS = [fusefs.ring.RUN_SECONDS, 1e6, 1e6, 1e6]
"""Changes follow each other so soon: clients here make a pause after each deed."""
LOOK_SECONDS = [metaserver.rings.LOOK_SECONDS, 1e6]
"""The metadata server looks into a ring unasked so often: in half of the lives only when it is asked."""
BLOCK_RUN_SECONDS = [mediator.block_rings.RUN_SECONDS, 1e6, 1e6]
BLOCK_LOOK_SECONDS = [dataserver.service.LOOK_SECONDS, 1e6]
"""The same of blocks that mediators give to data servers."""
BLOCK_RINGS, BLOCK_SLOTS = 2, 8
"""So many fit into half of a small reserve."""
PREFIX, BLOCKS_PREFIX = "quorumfs-ring-", "quorumfs-blocks-"
WRITES_FAIL = 0.05
"""So many blocks are written into a ring, and the mediator does not hear of it."""
STOPPED = 0.3
STOPPED_SECONDS = 4.0
"""A grant is shorter."""


def boot_file(path: Any, boots: int) -> StringIO | None:
    """Return what tells how often a machine was started, if that is the file."""
    return StringIO(f"{boots:036d}\n") if os.fspath(path) == BOOT_FILE else None


def end_all(root: Path) -> None:
    """The machine of a disk has lost its power: nothing is told by any ring any more."""
    for path in _files(root):
        with path.open("r+b") as file:
            file.write(bytes(HEAD_BYTES))
        path.unlink()


def memory(root: Path) -> Path:
    """Return where the rings of all machines are; their names tell whose they are."""
    return root.with_name("memory")


def _files(root: Path) -> list[Path]:
    """Return the rings of the machine with this disk."""
    begin = PREFIX if root.name == "meta" else f"{BLOCKS_PREFIX}{root.name}-"
    return sorted(memory(root).glob(f"{begin}*"))


def kept(root: Path) -> dict[Path, bytes]:
    """Return all rings of the machine with this disk."""
    return {path: path.read_bytes() for path in _files(root)}


def go_back(rings: dict[Path, bytes]) -> None:
    """Have the rings as they were; each is the same file, which clients have open."""
    for path, content in rings.items():
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(content)


def install(root: Path, seed: bytes, sleep: Callable[[float], None]) -> None:
    """Have rings written as said above, and read by their servers; `root` is the metadata server's disk."""
    rng = random.Random(seed)
    memory(root).mkdir(exist_ok=True)
    metaserver.rings.SHARED_MEMORY = memory(root)
    metaserver.rings.prefix = lambda *_: PREFIX
    fusefs.ring.RUN_SECONDS = rng.choice(RUN_SECONDS)
    metaserver.rings.LOOK_SECONDS = rng.choice(LOOK_SECONDS)

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        before, after = (rng.random() * STOPPED_SECONDS * (rng.random() < STOPPED) for _ in range(2))
        sleep(before)
        written = os.pwrite(descriptor, data, offset)
        sleep(after)
        return written

    fusefs.ring.os = StandIn(os, pwrite=pwrite)  # type: ignore[attr-defined]
    _install_blocks(root, rng)


def _install_blocks(root: Path, rng: random.Random) -> None:
    dataserver.block_rings.SHARED_MEMORY = memory(root)
    dataserver.block_rings.prefix = lambda directory, _: f"{BLOCKS_PREFIX}{directory.name}-"
    dataserver.block_rings.MOST_RINGS, dataserver.block_rings.SLOTS = BLOCK_RINGS, BLOCK_SLOTS
    dataserver.service.LOOK_SECONDS = rng.choice(BLOCK_LOOK_SECONDS)
    mediator.block_rings.RUN_SECONDS = rng.choice(BLOCK_RUN_SECONDS)

    def is_open(self: Any) -> bool:
        transport = self._transport
        return bool(self.stands and not transport.is_closing() and transport.peer.process.alive)

    def pwritev(descriptor: int, buffers: list[Any], offset: int) -> int:
        written = os.pwritev(descriptor, buffers, offset)
        if rng.random() < WRITES_FAIL:
            raise OSError(errno.EIO, "nobody knows whether it was written")
        return written

    mediator.block_rings.os = StandIn(os, pwritev=pwritev)  # type: ignore[attr-defined]
    wire.client_msgpack._Connection.is_open = is_open  # type: ignore[method-assign]
