"""Processes killed while a program changes names: what it was told is done is done for the next mount."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.test_alone import GRANT_SECONDS
from tools.cluster import LocalCluster

Prepare = Callable[[LocalCluster, Path], list[Any]]
"""Mounts the cluster, and returns the command of a program that writes a dot for each thing that is done."""
Judge = Callable[[Path, int], str]
"""Says what is wrong on a new mount after so many dots, or nothing; and clears it up."""


def kill_at_random(
    make_cluster: ClusterFactory,
    tmp_path: Path,
    rounds: int,
    prepare: Prepare,
    judge: Judge,
    most_seconds: float,
    data_servers: Sequence[str] = (),
) -> None:
    """Play rounds, each with a mount of its own, and kill up to three processes at any moment of it.

    Args:
        make_cluster: makes the cluster.
        tmp_path: where it is mounted.
        rounds: how many.
        prepare: begins a round.
        judge: ends it.
        most_seconds: so long after the first dot at most.
        data_servers: those of them that may be killed too.
    """
    cluster = make_cluster(**SMALL, alone_seconds=GRANT_SECONDS, lease_seconds=6.0)
    cluster.start()
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for turn in range(rounds):
        first, again = tmp_path / f"first-{turn}", tmp_path / f"again-{turn}"
        first.mkdir(), again.mkdir()
        command = prepare(cluster, first)
        (mount,) = cluster.mount_names()
        victims = draw.sample([mount, "mediator", "metaserver", *data_servers], draw.randint(1, 3))
        dots = _kill_while_it_runs(cluster, command, victims, draw.random() * most_seconds)
        cluster.mount(again)
        wrong = judge(again, dots)
        for name in cluster.mount_names():
            cluster.unmount(name)
        assert not wrong, f"{wrong} (seed {seed}, round {turn}, killed: {', '.join(victims)})"


def _kill_while_it_runs(cluster: LocalCluster, command: list[Any], victims: list[str], seconds: float) -> int:
    """Kill these so long after the program's first dot, start the servers again; return how many came."""
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert program.stdout is not None
    dots = len(program.stdout.read(1))
    time.sleep(seconds)
    for name in victims:
        cluster.kill(name)
    for name in victims:
        if name in cluster.server_names:
            cluster.restart(name)
    dots += len(program.communicate(timeout=60)[0])
    cluster.clear_dead_mounts()
    return dots


def judge_files(directory: Path, contents: Sequence[str], made: int) -> str:
    """Say what is wrong with files f0, f1 and so on, of which so many were made for certain; remove them."""
    wrong = []
    for number, content in enumerate(contents):
        path = directory / f"f{number}"
        found = path.read_text() if path.exists() else None
        may_be = [content] if number < made else [content, "", None]
        if found not in may_be:
            wrong.append((number, found))
        path.unlink(missing_ok=True)
    return f"{made} were made: {wrong}" if wrong else ""
