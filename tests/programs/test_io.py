"""fio writes in many ways, reads everything back, and compares checksums."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.work import run

QUICK = {
    "random": "--rw=randrw --bsrange=1k-64k --ioengine=psync --verify_backlog=64 --size=4m",
    "memory_map": "--rw=randwrite --bs=4k --ioengine=mmap --size=4m",
    "direct": "--rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --size=4m",
}
LONG = {
    "sequential": "--rw=write --bs=1m --ioengine=psync --size=64m --numjobs=2",
    "random_small": "--rw=randwrite --bs=4k --ioengine=psync --size=32m",
    "unaligned": "--rw=randwrite --bsrange=512-20k --bs_unaligned=1 --ioengine=psync --size=16m",
    "memory_map_sequential": "--rw=write --bs=64k --ioengine=mmap --size=32m --numjobs=2",
    "memory_map_synced": "--rw=randwrite --bs=4k --ioengine=mmap --fsync=64 --size=8m",
    "direct_sequential": "--rw=write --bs=256k --ioengine=libaio --iodepth=8 --direct=1 --size=32m",
    "direct_unaligned": "--rw=randwrite --bsrange=512-64k --bs_unaligned=1 --direct=1 --size=4m",
    "direct_vectors": "--rw=randwrite --bs=16k --ioengine=pvsync --direct=1 --size=16m",
    "fsync": "--rw=randwrite --bs=4k --ioengine=sync --fsync=8 --size=2m",
    "fdatasync": "--rw=randwrite --bs=8k --ioengine=sync --fdatasync=4 --size=2m",
    "synchronous": "--rw=randwrite --bs=8k --ioengine=sync --sync=1 --size=2m",
    "overwritten": "--rw=randwrite --bs=4k --ioengine=psync --norandommap --randrepeat=0 --size=8m --loops=2",
    "allocated": "--rw=randwrite --bs=4k --ioengine=psync --fallocate=posix --size=8m",
    "allocated_keeping_the_size": "--rw=randwrite --bs=4k --ioengine=psync --fallocate=keep --size=8m",
    "many_files": "--rw=randrw --bs=8k --ioengine=psync --nrfiles=50 --openfiles=10 --size=16m",
    "spliced": "--rw=write --bs=64k --ioengine=splice --size=8m",
    "hot_spots": "--rw=randwrite --bs=4k --size=16m --random_distribution=zipf --norandommap",
}


@pytest.mark.parametrize("shape", QUICK)
def test_fio_verifies(here: Path, shape: str) -> None:
    verify(here, QUICK[shape])


@pytest.mark.long
@pytest.mark.parametrize("shape", LONG)
def test_fio_verifies_more(here: Path, shape: str) -> None:
    verify(here, LONG[shape])


def verify(here: Path, shape: str) -> None:
    """Write and compare within one run of fio; compare again from the servers, with all caches dropped."""
    words = f"fio --name=job --directory=. --verify=crc32c --verify_fatal=1 --verify_state_save=0 {shape}"
    run(here, f"{words} --do_verify=1 --end_fsync=1", seconds=250)
    run(here, "setfattr -n user.quorumfs.drop_caches -v '' .")
    if "norandommap" not in shape and "loops" not in shape and "randrw" not in shape:
        run(here, f"{words} --verify_only=1", seconds=250)
