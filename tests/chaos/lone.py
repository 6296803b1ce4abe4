"""The faults of a cluster with one mount, which tells its changes without a call: see decision 31.

It is stopped beyond the end of its grant, everything is killed at once, and another mount visits: it
must see all that was acknowledged before it came. One thread.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

from tests.chaos.cluster import ChaosCluster
from tests.chaos.load import PLACE
from tests.chaos.names import Journal, look_at
from tests.chaos.nemesis import KILL_ALL, PAUSE_MOUNT, VISIT, Fault, Kinds
from tools.processes import ClusterError

BEHIND_SECONDS = 1.0
"""So long at most the metadata server is stopped before all are killed: what is told meanwhile waits."""
VISITED = 60
"""So many files of each load process are read at a visit."""
START_SECONDS = 60.0


def kinds_of_one_mount(
    cluster: ChaosCluster,
    place: Path,
    visited: Path,
    journals: list[Path],
    dice: random.Random,
    found: list[str],
) -> Kinds:
    """Return what a nemesis may draw as well.

    Args:
        cluster: with one mount.
        place: its mount point.
        visited: that of the mount which visits.
        journals: what the load processes know, in their order.
        dice: draws when and in which order.
        found: what a visit finds wrong is added there.
    """
    (mount,) = cluster.mount_names()

    def kill_all() -> Fault:
        names = [mount, *cluster.server_names]
        dice.shuffle(names)
        behind = dice.choice((0.0, dice.uniform(0, BEHIND_SECONDS)))
        return Fault(KILL_ALL, "all", partial(_kill_all, cluster, names, behind), start_all)

    def start_all() -> None:
        cluster.unmount(mount, force=True)
        cluster.start(deadline_seconds=START_SECONDS)
        cluster.mount(place, deadline_seconds=START_SECONDS)

    def pause_mount() -> Fault:
        return Fault(PAUSE_MOUNT, mount, lambda: cluster.pause(mount), lambda: cluster.resume(mount))

    def visit() -> Fault:
        return Fault(VISIT, "visitor", lambda: _visit(cluster, visited, journals, found), lambda: None)

    return {KILL_ALL: (2, kill_all), PAUSE_MOUNT: (4, pause_mount), VISIT: (3, visit)}


def _kill_all(cluster: ChaosCluster, names: list[str], behind_seconds: float) -> None:
    if behind_seconds:
        cluster.pause("metaserver")
        time.sleep(behind_seconds)
    cluster.kill_all(names)


def _visit(cluster: ChaosCluster, place: Path, journals: list[Path], found: list[str]) -> bool:
    """Mount, look, and unmount; return False if something that is broken kept it from looking."""
    before = [Journal.read(journal) for journal in journals]
    try:
        name = cluster.mount(place)
    except ClusterError:
        return False
    try:
        for writer, (journal, known) in enumerate(zip(journals, before, strict=True)):
            seen = look_at(place / PLACE, writer, known, partial(Journal.read, journal), VISITED)
            found += [f"a visit: {line}" for line in seen.lost + seen.wrong]
    except OSError:
        return False
    finally:
        cluster.unmount(name, force=True)
    return True
