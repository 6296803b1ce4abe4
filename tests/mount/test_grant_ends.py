"""Files made and removed one after the other while the grant ends, as the mount or the server is stopped.

Another mount comes meanwhile, and must see what was acknowledged by then: P8.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.test_alone import GRANT_SECONDS, await_grant, names
from tests.support import wait_until
from tools.cluster import LocalCluster

STEPS, KEPT = 900, 60
PROGRAM = """
import errno, os, sys
place, steps, kept = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def make(step):
    with open(f"{place}/f{step}", "w") as file:
        file.write(f"content of {step}")
for step in range(steps):
    try:
        make(step)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ESTALE) or os.path.exists(f"{place}/f{step}"):
            raise
        os.write(2, b"!")
        make(step)
    if step >= kept:
        os.unlink(f"{place}/f{step - kept}")
    os.write(1, b".")
"""
"""It says of each step that it is done, once it was told so.

A file that was opened before others came, and is closed after that, is refused: they may have looked for it.
"""


class Steps:
    """The program under way, and how many steps are done."""

    def __init__(self, place: Path) -> None:
        self.place, self.done = place, 0
        command = [sys.executable, "-c", PROGRAM, place, str(STEPS), str(KEPT)]
        self._program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._program.stdout is not None
        while told := os.read(self._program.stdout.fileno(), 4096):
            self.done += len(told)

    def end(self) -> None:
        self._reader.join()
        _, told = self._program.communicate()
        assert self._program.returncode == 0 and self.done == STEPS, told.decode()
        assert told in (b"", b"!"), "one file may be refused: the one that was open"

    def judge(self, place: Path) -> None:
        """Compare what another mount shows with what was told before, and what may have been done since."""
        before = self.done
        seen = names(place)
        after = self.done
        there = {f"f{step}" for step in range(max(0, after - KEPT + 1), before)}
        gone = {f"f{step}" for step in range(before - KEPT)}
        assert there <= seen, f"after {before} steps {sorted(there - seen)} are not there"
        assert not gone & seen, f"after {before} steps {sorted(gone & seen)} are there"


@contextmanager
def elsewhere(cluster: LocalCluster, mountpoint: Path) -> Iterator[Path]:
    mountpoint.mkdir(exist_ok=True)
    name = cluster.mount(mountpoint)
    yield mountpoint
    cluster.unmount(name)


def end_grants(make_cluster: ClusterFactory, tmp_path: Path, rounds: int) -> None:
    cluster = make_cluster(**SMALL, alone_seconds=GRANT_SECONDS)
    cluster.start()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    mount = cluster.mount(mountpoint)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for turn in range(rounds):
        place = mountpoint / f"d{turn}"
        place.mkdir()
        await_grant(cluster)
        steps, wanted = Steps(place), draw.randrange(1, STEPS // 2)
        wait_until(lambda: steps.done >= wanted, 60, "the program is under way")  # noqa: B023
        victim = draw.choice([mount, "metaserver", None])
        print(f"round {turn}: {victim} is stopped")
        if victim is not None:
            cluster.pause(victim)
        resume = threading.Timer(GRANT_SECONDS + 1.0, lambda: victim and cluster.resume(victim))  # noqa: B023
        resume.start()
        if victim == "metaserver":
            resume.join()
        with elsewhere(cluster, tmp_path / "other") as other:
            for _ in range(3):
                steps.judge(other / place.name)
            resume.join()
            steps.judge(other / place.name)
        steps.end()
        last = {f"f{step}" for step in range(STEPS - KEPT, STEPS)}
        with elsewhere(cluster, tmp_path / "other") as other:
            for seen in (place, other / place.name):
                assert names(seen) == last, f"seed {seed}, round {turn}"
                for step in range(STEPS - KEPT, STEPS):
                    assert (seen / f"f{step}").read_text() == f"content of {step}"


def test_another_mount_sees_all_that_was_acknowledged(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    end_grants(make_cluster, tmp_path, 3)


@pytest.mark.long
def test_other_mounts_see_all_that_was_acknowledged(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    end_grants(make_cluster, tmp_path, 12)
