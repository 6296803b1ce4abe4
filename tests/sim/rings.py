"""Rings of changes in the simulation: of one machine with the metadata server's, whatever the network does.

A kill leaves a ring as it is; a power loss, which in a real cluster ends the mounts that use it too, ends it
at once, and the machine's next start has another name. Clients are stopped in the middle of a write into it.
One thread.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import fusefs.ring
import metaserver.rings
from tests.sim.seams import StandIn
from wire.ring import HEAD_BYTES

BOOT_FILE = "/proc/sys/kernel/random/boot_id"
RUN_SECONDS = [fusefs.ring.RUN_SECONDS, 1e6, 1e6, 1e6]
"""Changes follow each other so soon: clients here make a pause after each deed."""
LOOK_SECONDS = [metaserver.rings.LOOK_SECONDS, 1e6]
"""The metadata server looks into a ring unasked so often: in half of the lives only when it is asked."""
PREFIX = "quorumfs-ring-"
STOPPED = 0.3
STOPPED_SECONDS = 4.0
"""A grant is shorter."""


def boot_file(path: Any, boots: int) -> StringIO | None:
    """Return what tells how often a machine was started, if that is the file."""
    return StringIO(f"{boots:036d}\n") if os.fspath(path) == BOOT_FILE else None


def end_all(root: Path) -> None:
    """The machine of a disk has lost its power: nothing is told by any ring any more."""
    for path in memory(root).glob(f"{PREFIX}*"):
        with path.open("r+b") as file:
            file.write(bytes(HEAD_BYTES))
        path.unlink()


def memory(root: Path) -> Path:
    """Return where the rings of the machine with this disk are."""
    return root.with_name(f"{root.name}-memory")


def kept(root: Path) -> dict[Path, bytes]:
    """Return all rings of the machine with this disk."""
    return {path: path.read_bytes() for path in memory(root).glob(f"{PREFIX}*")}


def go_back(rings: dict[Path, bytes]) -> None:
    """Have the rings as they were; each is the same file, which clients have open."""
    for path, content in rings.items():
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(content)


def install(root: Path, seed: bytes, sleep: Callable[[float], None]) -> None:
    """Have clients write into rings as said above, and the metadata server with this disk read them."""
    rng = random.Random(seed)
    memory(root).mkdir(exist_ok=True)
    metaserver.rings.SHARED_MEMORY = memory(root)
    metaserver.rings.prefix = lambda _: PREFIX
    fusefs.ring.RUN_SECONDS = rng.choice(RUN_SECONDS)
    metaserver.rings.LOOK_SECONDS = rng.choice(LOOK_SECONDS)

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        before, after = (rng.random() * STOPPED_SECONDS * (rng.random() < STOPPED) for _ in range(2))
        sleep(before)
        written = os.pwrite(descriptor, data, offset)
        sleep(after)
        return written

    fusefs.ring.os = StandIn(os, pwrite=pwrite)  # type: ignore[attr-defined]
