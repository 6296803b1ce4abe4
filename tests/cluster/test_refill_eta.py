"""The ETA of a blank server's refill, looked at all the time, against what it took. Prints the figures.

By the speed of the machine, which may change at any time when others use it too, some looks may be wrong.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.conftest import ClusterFactory
from tests.fault_sweep.outcomes import write
from tests.support import take_seed
from tools.cluster import LocalCluster
from tools.health import ask_mediator, await_writable

LOOK_SECONDS = 0.25
REFILLS = 3
MOST_WRONG = 0.1
SERVER = 2
KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20

Look = tuple[float, dict[str, Any]]
"""The time, and what `quorumfs status --json` has of the refill."""


def sizes(kind: str, chance: random.Random) -> list[int]:
    """Return the sizes of the files, in the order in which they are written."""
    if kind == "large":
        return [4 * MEBIBYTE] * 300
    small = [chance.randint(1, 9 * KIBIBYTE) for _ in range(20_000)]
    large = [chance.randint(MEBIBYTE, 4 * MEBIBYTE) for _ in range(100)]
    if kind == "mixed":
        return chance.sample(small + large, len(small + large))
    return small + large


def watch_refill(cluster: LocalCluster) -> tuple[list[Look], float]:
    """Return all looks at a refill while it lasts, and when it ended."""
    looks: list[Look] = []
    while True:
        status = ask_mediator(cluster)
        assert status is not None
        server, now = status["servers"][SERVER - 1], time.monotonic()
        if server["state"] == "refilling":
            looks.append((now, server["refill"]))
        elif looks and server["state"] == "up" and server["refill"]["state"] == "done":
            return looks, now
        time.sleep(LOOK_SECONDS)


def is_wrong(refill: dict[str, Any], truth: float) -> bool:
    """Tell whether an ETA is told and wrong by more than a factor of two."""
    told = refill["eta_seconds"]
    return told is not None and not truth / 2 <= told <= truth * 2


def is_outside(refill: dict[str, Any], truth: float) -> bool:
    """Tell whether bounds are told between which the truth does not lie."""
    least, most = refill["eta_least_seconds"], refill["eta_most_seconds"]
    return least is not None and not least <= truth <= (truth if most is None else most)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "bytes_per_second"),
    [("mixed", 0), ("mixed", 10_000_000), ("small, then large", 0), ("large", 0), ("large", 60_000_000)],
)
def test_the_eta_of_a_blank_server(kind: str, bytes_per_second: int, make_cluster: ClusterFactory) -> None:
    chance = random.Random(take_seed())
    cluster = make_cluster(servers=3, read_quorum=2, write_quorum=3, refill_bytes_per_second=bytes_per_second)
    cluster.start()
    await_writable(cluster)
    write(cluster, {f"file-{n}": chance.randbytes(size) for n, size in enumerate(sizes(kind, chance))})
    seen: list[tuple[dict[str, Any], float]] = []
    for _ in range(REFILLS):
        cluster.restart(f"data-{SERVER}", blank=True)
        looks, ended = watch_refill(cluster)
        seen += [(refill, ended - at) for at, refill in looks]
        print(f"a refill of {ended - looks[0][0]:.1f} s")
    told = [refill["eta_seconds"] for refill, _ in seen if refill["eta_seconds"] is not None]
    bounds = [refill for refill, _ in seen if refill["eta_least_seconds"] is not None]
    wrong = [(refill["eta_seconds"], truth) for refill, truth in seen if is_wrong(refill, truth)]
    outside = [
        (refill["eta_least_seconds"], refill["eta_most_seconds"], truth)
        for refill, truth in seen
        if is_outside(refill, truth)
    ]
    print(f"{kind}, {bytes_per_second or 'any number of'} bytes a second: {len(seen)} looks;")
    print(f"{len(told)} ETAs, {len(wrong)} of them wrong: {wrong}")
    print(f"{len(bounds)} bounds, {len(outside)} outside of them: {outside}")
    assert bounds
    assert len(wrong) <= MOST_WRONG * len(told)
