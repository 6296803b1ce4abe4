"""What is drawn for a life of a cluster: its configuration, and sizes and periods of its code.

In part of the lives these are as in a real cluster, for which a life is too short. It must not be asked once
anything runs. One thread.
"""

from __future__ import annotations

import random
from pathlib import Path

import mediator.refill
import mediator.scrub
import metaserver.log
import metaserver.store
import wire.msgpack_codec
import wire.msgpack_long
import wire.server
import wire.shared_sync
from wire.config import ClusterConfig, DataServerConfig, Deadlines
from wire.quorum import Quorum

INSPECTION_SECONDS = [3.0, 60.0, mediator.refill.INSPECTION_SECONDS]
"""Inventories are compared so often. In a third of the lives it is as in a real cluster, never: without it,
what a server lacks must be known and filled too."""
OFTEN_SECONDS = min(INSPECTION_SECONDS)
COPY_SECONDS = [0.0, 0.0, 6.0]
"""Copies of the metadata are stored so often: in a third of the lives, as they cost much."""
PAGES = [7, 4096]
"""So many blocks are compared or scrubbed at once: a life has some tens of them, of which seven make several
pages; with three, half of all messages were about these."""
CHECKPOINTS = [
    (metaserver.log.CHECKPOINT_ROWS, metaserver.store.LOG_PAGES_MAX),
    (20, metaserver.store.LOG_PAGES_MAX),
    (metaserver.log.CHECKPOINT_ROWS, 12),
]
"""The metadata's log is moved into the database after so many rows, or by a commit after so many pages: in a
third of the lives as in a real cluster, where a life is too short for it."""
RESERVE_BYTES = 1024 * 1024
QUICK_SYNC_SECONDS = [0.0, 1.0]
"""A disk takes no virtual time in the loop: a server waits for it there never, or whenever it may."""
ROOMS_BYTES = [wire.msgpack_long.LONG_BYTES + 4096, wire.msgpack_codec.ROOM_BYTES]
"""So much of what arrives on a connection is taken at once, at most: with little room more are long messages.
What is not received where it stays, as a long byte string is, must find room."""


def configure(rng: random.Random, directory: Path, quorum: Quorum, calls_wait: bool) -> ClusterConfig:
    """Return the configuration of a life, in which calls may wait for servers that are away."""
    servers = tuple(
        DataServerConfig(k, f"data-{k}:7000", directory / f"data-{k}") for k in range(1, quorum.servers + 1)
    )
    return ClusterConfig(
        "simulated",
        quorum,
        "mediator:7000",
        "meta:7000",
        directory / "meta",
        servers,
        more_mediators=("mediator-2:7000",) if rng.random() < 0.3 else (),
        deadlines=Deadlines(*((2.0, 2.0, 2.0) if calls_wait else (8.0, 5.0, 8.0)), 1.5, 3.0, 1.0, 5.0),
        lease_seconds=10.0,
        dirty_bytes=8 * 1024 * 1024,
        commit_age_seconds=5.0,
        metadata_copy_seconds=rng.choice(COPY_SECONDS),
        reserve_bytes=RESERVE_BYTES,
        unavailable="wait" if calls_wait else "fail",
    )


def change_sizes(rng: random.Random) -> None:
    """Give the code of this process sizes and periods that a life meets often."""
    mediator.refill.PAGE = mediator.scrub.PAGE = rng.choice(PAGES)
    mediator.refill.INSPECTION_SECONDS = rng.choice(INSPECTION_SECONDS)
    metaserver.log.CHECKPOINT_ROWS, metaserver.store.LOG_PAGES_MAX = rng.choice(CHECKPOINTS)
    wire.msgpack_codec.ROOM_BYTES = wire.server.ROOM_BYTES = rng.choice(ROOMS_BYTES)  # type: ignore[attr-defined]
    wire.shared_sync.QUICK_SECONDS = rng.choice(QUICK_SYNC_SECONDS)
