"""A supervised mount is there again after its process was killed, and ends when it is unmounted."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.support import wait_until


def child_of(parent: int) -> int | None:
    """Return the process that a supervisor has started, if there is one now."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(children[0]) if children else None


def reads(file: Path) -> bool:
    try:
        return file.read_bytes() == b"content"
    except OSError:
        return False


def test_a_mount_that_dies_is_mounted_again(make_cluster: ClusterFactory, mountpoint: Path) -> None:
    cluster = make_cluster(**SMALL)
    cluster.start()
    name = cluster.mount(mountpoint, "--supervise")
    (mountpoint / "a").write_bytes(b"content")
    record = cluster.process(name).record()
    assert record is not None
    held = os.open(mountpoint / "a", os.O_RDONLY)  # in use, and yet taken away
    for _ in range(2):
        child = child_of(record.pid)
        assert child is not None
        os.kill(child, signal.SIGKILL)
        wait_until(lambda gone=child: child_of(record.pid) not in (None, gone), 10, "another has begun")
        wait_until(lambda: reads(mountpoint / "a"), 10, "the mount is there again")
    with suppress(OSError):  # of the mount that died
        os.close(held)
    cluster.unmount(name)
    assert cluster.state(name) == "down"
    assert not os.path.ismount(mountpoint)
