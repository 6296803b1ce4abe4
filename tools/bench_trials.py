"""What is done at one place of a curve: pieces of work on a fresh directory of a fresh cluster, timed.

What is read is compared with what was written. It draws and prints nothing. One thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench_caches import Caches
from tools.bench_parallel import create_in_parallel
from tools.bench_work import (
    Clock,
    Place,
    Sizes,
    WrongBytes,
    create_small,
    delete_small,
    list_small,
    read_file,
    read_small,
    stat_small,
    write_file,
)
from tools.cluster import LocalCluster
from tools.health import ask_mediator, await_writable
from tools.processes import ClusterError
from wire.blocking import BlockingClient
from wire.methods.mediator import MediatorMethods

SEED = 1
MIB = 1 << 20
LOOK_SECONDS = 0.05
HEAL_SECONDS = 3600.0
CALL_SECONDS = 10.0
ENTRIES_EACH = 1000
"""So many files are in each directory of a file system that is filled."""
FILLERS = 4
"""Threads that fill it, which is not measured."""
MORE_FILES = 500
HEALED = 3
"""The data server that is emptied and refilled, and scrubbed."""

Trial = Callable[[Path, Caches], dict[str, float]]
"""Does the work of one place in a fresh directory, and returns the seconds of each series."""


def with_everything(scale: float) -> Trial:
    """Return large and small writes and reads."""
    sizes = Sizes(pages=4096, files=100).scaled(scale)

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        place = Place(directory, sizes, SEED)
        size = sizes.words["size"]
        return {
            f"write {size}, fsync": _seconds(place, write_file),
            f"read {size}, cold": _seconds(place, read_file, caches),
            "create a file of 4 KiB": _seconds(place, create_small) / sizes.files,
            "read a file of 4 KiB, cold": _seconds(place, read_small, caches) / sizes.files,
        }

    return trial


def with_reads(scale: float) -> Trial:
    """Return a large read and small ones."""
    sizes = Sizes(pages=4096, files=100).scaled(scale)

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        place = Place(directory, sizes, SEED)
        write_file(place, Clock())
        create_small(place, Clock())
        return {
            f"read {sizes.words['size']}, cold, by Qr": _seconds(place, read_file, caches),
            "read a file of 4 KiB, cold, by Qr": _seconds(place, read_small, caches) / sizes.files,
        }

    return trial


def with_writes(scale: float) -> Trial:
    """Return a large write and small ones."""
    sizes = Sizes(pages=4096, files=100).scaled(scale)

    def trial(directory: Path, _caches: Caches) -> dict[str, float]:
        place = Place(directory, sizes, SEED)
        return {
            f"write {sizes.words['size']}, fsync, by Qw": _seconds(place, write_file),
            "create a file of 4 KiB, by Qw": _seconds(place, create_small) / sizes.files,
        }

    return trial


def with_size(size: int) -> Trial:
    """Return a write and a read of one file."""
    data = os.urandom(min(size, MIB))

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        path = directory / "file"
        writing, reading = Clock(), Clock()
        with writing, path.open("wb", buffering=0) as file:
            for number in range(-(-size // MIB)):
                file.write(_stamped(data, number))
            os.fsync(file)
        caches.settle()
        caches.drop(directory.parent)
        wrong = 0
        with reading, path.open("rb", buffering=0) as file:
            for number in range(-(-size // MIB)):
                wrong += file.read(MIB) != _stamped(data, number)
        if wrong:
            raise WrongBytes(f"{path}: other bytes than were written in {wrong} MiB")
        path.unlink()
        return {"write, fsync": writing.seconds, "read, cold": reading.seconds}

    return trial


def with_clients(clients: int, files: int) -> Trial:
    """Return the creation of files by so many processes."""

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        caches.settle()
        return {"create a file of 4 KiB": create_in_parallel(directory, files, clients, SEED) / files}

    return trial


def with_entries(entries: int) -> Trial:
    """Return work on all files of one directory, for each of them."""

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        place = Place(directory, Sizes(files=entries), SEED)
        return {
            "create": _seconds(place, create_small) / entries,
            "ls -l, cold": _seconds(place, list_small, caches) / entries,
            "stat, cold": _seconds(place, stat_small, caches) / entries,
            "delete": _seconds(place, delete_small) / entries,
        }

    return trial


def _seconds(place: Place, work: Callable[[Place, Clock], None], cold: Caches | None = None) -> float:
    clock = Clock()
    if cold is not None:
        cold.settle()
        cold.drop(place.directory.parent)
    work(place, clock)
    return clock.seconds


def _stamped(data: bytes, number: int) -> bytes:
    """Return the MiB of that number: no two are alike, so that nothing can be deduplicated."""
    return number.to_bytes(8, "big")[: len(data)] + data[8:]


def with_files(cluster: LocalCluster, files: int, mountpoint: Path) -> Trial:
    """Return the creation of more files where there are so many, and a start of the metadata server."""

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        directories = [mountpoint / f"fill-{number}" for number in range(-(-files // ENTRIES_EACH))]
        with ThreadPoolExecutor(FILLERS) as threads:
            list(threads.map(partial(_fill, min(files, ENTRIES_EACH)), directories))
        place = Place(directory, Sizes(files=MORE_FILES), SEED)
        caches.settle()
        created = _seconds(place, create_small) / MORE_FILES
        found = _seconds(place, stat_small, caches) / MORE_FILES
        started = Clock()
        cluster.stop("metaserver")
        with started:
            cluster.start("metaserver")
        await_writable(cluster)
        return {
            "create a file of 4 KiB": created,
            "stat a file, cold": found,
            "start the metadata server": started.seconds,
        }

    return trial


def _fill(files: int, directory: Path) -> None:
    if not directory.exists():
        directory.mkdir()
        create_small(Place(directory, Sizes(files=files), SEED), Clock())


def with_damage(cluster: LocalCluster, mebibytes: int) -> Trial:
    """Return the refill of an emptied data server, and a scrub of it, for each MiB."""

    def trial(directory: Path, _caches: Caches) -> dict[str, float]:
        sizes = Sizes(pages=mebibytes * MIB // 4096)
        write_file(Place(directory, sizes, SEED), Clock())
        refilling, scrubbing = Clock(), Clock()
        cluster.restart(f"data-{HEALED}", blank=True)
        with refilling:
            _await(cluster, "the refill", lambda: _is_refilled(cluster))
        with scrubbing, closing(BlockingClient([cluster.address("mediator")], cluster.config.rpc)) as client:
            client.call(CALL_SECONDS, MediatorMethods.scrub, HEALED, True)
            _await(cluster, "the scrub", lambda: _scrub(client)["state"] == "done")
        return {"refill, a MiB": refilling.seconds / mebibytes, "scrub, a MiB": scrubbing.seconds / mebibytes}

    return trial


def _is_refilled(cluster: LocalCluster) -> bool:
    status = ask_mediator(cluster)
    if status is None:
        return False
    server = next(each for each in status["servers"] if each["number"] == HEALED)
    refill = server["refill"] or {}
    return server["state"] == "up" and bool(refill.get("done")) and refill["done"] == refill["total"]


def _scrub(client: BlockingClient) -> dict[str, Any]:
    (progress,) = client.call(CALL_SECONDS, MediatorMethods.scrub, HEALED, False)
    return progress


def _await(cluster: LocalCluster, what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HEAL_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise ClusterError(f"{what} did not end within {HEAL_SECONDS:g} s; see {cluster.directory}")
        time.sleep(LOOK_SECONDS)
