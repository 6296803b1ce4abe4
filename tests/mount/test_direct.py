"""Descriptors with O_DIRECT, where the kernel does through its pages what was to go past them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ClusterFactory
from tests.mount.conftest import SMALL
from tests.mount.test_several_mounts import abort

ROUNDS = 300
WRITE_AND_READ = """
import ctypes, mmap, os, sys

path, rounds = sys.argv[1], int(sys.argv[2])
# The kernel can copy from these pages, but not hold on to them, as a write past its own pages would need.
line = next(line for line in open("/proc/self/maps") if line.rstrip().endswith("[vvar]"))
special = (ctypes.c_char * 100).from_address(int(line.split("-")[0], 16))
page = mmap.mmap(-1, 4096)
page[:] = b"b" * 4096
direct = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
buffered = os.open(path, os.O_RDONLY)
reader = os.fork()
while not reader:
    os.pread(buffered, 4096, 0)
try:
    for _ in range(rounds):
        assert os.pwritev(direct, [page, special], 0) == 4196
finally:
    os.kill(reader, 9)
assert os.pread(buffered, 4096, 0) == bytes(page)
"""


def test_a_direct_write_that_goes_through_pages_after_all_ends(
    make_cluster: ClusterFactory, mountpoint: Path
) -> None:
    cluster = make_cluster(**SMALL)
    cluster.start()
    cluster.mount(mountpoint)
    command = [sys.executable, "-c", WRITE_AND_READ, str(mountpoint / "a"), str(ROUNDS)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as writing:
        try:
            _, said = writing.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            abort(mountpoint)  # nothing else ends processes that wait for each other in the kernel
            raise
    assert (writing.returncode, said) == (0, "")
