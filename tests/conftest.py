"""Fixtures of all tiers: clusters of real processes that end with the test, and whose logs are read.

A traceback, or a line of level ERROR or CRITICAL, in the log of any process fails the test that ran it.
So does a cluster that is not whole in the end (tools.whole): a test that damages one on purpose says so, with
the marker `damages("why")`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import tools.addresses
from tools.cluster import LocalCluster
from tools.processes import ENDINGS
from tools.state_directory import CONFIG_NAME, forget_rings
from tools.whole import DIFFERING, LACKING, UNSEEN, check_stopped
from wire.config import load

UNEXPECTED = re.compile(r"Traceback \(most recent|\b(ERROR|CRITICAL)\b|never awaited|was never retrieved")

# With QUORUMFS_SEED set, every random test plays the same again, hypothesis's too.
hypothesis.settings.register_profile("seeded", derandomize=True)
if os.environ.get("QUORUMFS_SEED"):
    hypothesis.settings.load_profile("seeded")

# Test processes that run side by side draw from ports of their own: a free one is taken only a moment later.
_worker, _workers = (os.environ.get(f"PYTEST_XDIST_WORKER{name}") for name in ("", "_COUNT"))
if _worker and _workers:
    tools.addresses.PORTS = tools.addresses.PORTS[int(_worker.removeprefix("gw")) :: int(_workers)]

ClusterFactory = Callable[..., LocalCluster]
SmallDisk = Callable[[Path, int], None]


def unexpected_lines(cluster: LocalCluster) -> list[str]:
    """Return the lines in the logs of a cluster that no log should have, with what follows them."""
    found = []
    for log in sorted((cluster.directory / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        for index, line in enumerate(lines):
            if UNEXPECTED.search(line):
                found.append(f"{log.name}: " + "\n    ".join(lines[index : index + 30]))
                break
    return found


def assert_whole(base: Path) -> None:
    """Check every cluster below a directory that was ever started and is stopped.

    That a data server lacks blocks, or that its records are damaged, is what many tests are about: only that
    no server at all has a committed block counts here.
    """
    for depth in ("", "*/", "*/*/"):
        for file in base.glob(depth + CONFIG_NAME):
            if (file.parent / "meta" / "server.json").exists():
                found = check_stopped(load(file)).findings
                bad = [finding for finding in found if finding.check not in (LACKING, DIFFERING, UNSEEN)]
                assert not bad, f"{file.parent} is not whole: {bad}"


@pytest.fixture
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Check after a test that what it ran is whole."""
    yield
    if request.node.get_closest_marker("damages") is None:
        assert_whole(tmp_path)


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Make clusters in the test's own directory; the arguments are those of LocalCluster.create."""
    made: list[LocalCluster] = []

    def make(**settings: Any) -> LocalCluster:
        made.append(LocalCluster.create(tmp_path / f"cluster-{len(made) + 1}", **settings))
        return made[-1]

    yield make
    with ExitStack() as stack:
        for cluster in made:
            stack.callback(cluster.close)
            stack.callback(forget_rings, cluster.config)
    unexpected = [line for cluster in made for line in unexpected_lines(cluster)]
    assert not unexpected, "unexpected lines in the logs:\n" + "\n".join(unexpected)


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """Mount a file system of so many bytes on an empty directory; all go when the cluster has stopped."""
    with ExitStack() as stack:

        def mount(place: Path, size: int) -> None:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, timeout=10
            )
            stack.callback(subprocess.run, ["umount", "-l", str(place)], check=True, timeout=10)

        yield mount


@pytest.fixture
def fuse_device() -> None:
    """A mount test fails, and is not skipped, where FUSE cannot be used."""
    assert Path("/dev/fuse").exists(), (
        "no /dev/fuse: these tests need it (in a container: --device /dev/fuse)"
    )


@pytest.fixture
def mountpoint(tmp_path: Path, fuse_device: None) -> Path:
    """An empty directory to mount on."""
    place = tmp_path / "mnt"
    place.mkdir()
    return place


@pytest.fixture
def heeded_endings() -> Iterator[None]:
    """Signals that end commands are heeded, also where pytest itself was told to ignore them, as by nohup."""
    before = {number: signal.getsignal(number) for number in ENDINGS}
    for number in ENDINGS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
