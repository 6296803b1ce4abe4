"""How much memory each part of a cluster takes while many files are written and read at once.

What is read is compared with what was written. A thread for each file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.bench_caches import Caches
from tools.bench_work import WrongBytes
from tools.cluster import LocalCluster

MIB = 1 << 20
_RESET_PEAK = "5\n"
"""To /proc/PID/clear_refs: see proc_pid_clear_refs(5)."""


def with_writers_and_readers(
    cluster: LocalCluster, clients: int, size: int
) -> Callable[[Path, Caches], dict[str, float]]:
    """Return what writes and reads so many files of `size` bytes at once, and tells the peaks in bytes."""

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        forget_peaks(cluster)
        data = os.urandom(MIB)
        paths = [directory / str(number) for number in range(clients)]
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(lambda path: _write(path, data, size), paths))
            caches.settle()
            caches.drop(directory.parent)
            list(threads.map(lambda path: _read(path, data, size), paths))
        return {kind: float(peak) for kind, peak in peaks(cluster).items()}

    return trial


def _write(path: Path, data: bytes, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, MIB):
            file.write(data[: size - start])
        os.fsync(file)


def _read(path: Path, data: bytes, size: int) -> None:
    with path.open("rb", buffering=0) as file:
        for start in range(0, size, MIB):
            if file.read(MIB) != data[: size - start]:
                raise WrongBytes(f"{path}: other bytes than were written")


def forget_peaks(cluster: LocalCluster) -> None:
    """Have the kernel count each part's peak from now on."""
    for process in cluster.status():
        if process.pid is not None:
            Path(f"/proc/{process.pid}/clear_refs").write_text(_RESET_PEAK)


def peaks(cluster: LocalCluster) -> dict[str, int]:
    """Return the peak of resident memory in bytes by kind of part: of data servers the largest."""
    found: dict[str, int] = {}
    for process in cluster.status():
        kind = {"data": "data server", "mount": "mount"}.get(process.name.split("-")[0], process.name)
        if process.pid is not None:
            found[kind] = max(found.get(kind, 0), _peak_bytes(process.pid))
    return found


def _peak_bytes(pid: int) -> int:
    """Return VmHWM of proc_pid_status(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise OSError(f"the kernel does not tell the peak of process {pid}")
