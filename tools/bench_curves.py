"""How the cost of work grows: with the number of servers, the size of files, clients, and entries.

It measures on throwaway clusters, and hands the points to bench_svg.py to draw. What is read is compared with
what was written. One thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.bench_caches import Caches
from tools.bench_cluster import fresh_cluster_mount
from tools.bench_parallel import create_in_parallel
from tools.bench_results import FORMAT, median
from tools.bench_svg import Picture, Series, render_svg
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
from tools.output import bytes_text
from tools.progress import progress_bar
from wire.quorum import Quorum

SERVERS = (1, 3, 5, 7)
CLIENTS = (1, 2, 4, 8, 16)
FILES_PER_POINT = 320
LEAST_BYTES, LEAST_ENTRIES = 1024, 100
SEED = 1


@dataclass(frozen=True)
class Extent:
    """How far the curves go. `scale` is of the work of each point where the curve does not say it."""

    most_bytes: int = 64 << 20
    most_entries: int = 10_000
    scale: float = 1.0
    rounds: int = 3

    @property
    def sizes(self) -> list[int]:
        """File sizes in bytes, four times as large each."""
        return _steps(LEAST_BYTES, self.most_bytes, 4)

    @property
    def entries(self) -> list[int]:
        """Entries of directories, ten times as many each."""
        return _steps(LEAST_ENTRIES, self.most_entries, 10)


@dataclass(frozen=True)
class Point:
    """One median: on which curve, of which series, at which place."""

    curve: str
    series: str
    x: float
    seconds: float


def _steps(first: int, last: int, factor: int) -> list[int]:
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return found


def measure(parent: Path, extent: Extent) -> list[Point]:
    """Measure all curves, with a progress bar; the clusters are made in `parent`."""
    points: list[Point] = []
    steps = len(SERVERS) + len(extent.sizes) + len(CLIENTS) + len(extent.entries)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(steps, "points", steps))
        for found in _measure_all(parent, extent):
            points += found
            bar.describe(f"{found[0].curve}: {found[0].x:g}")
            bar.advance(1.0, 1)
    return points


def _measure_all(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    """Yield the points at one place of one curve, one place after the other."""
    for servers in SERVERS:
        quorum = Quorum(servers, servers // 2 + 1, servers)
        settings = {"servers": servers, "read_quorum": quorum.read, "write_quorum": quorum.write}
        with fresh_cluster_mount(parent, **settings) as mountpoint:
            yield _medians("servers", servers, mountpoint, extent.rounds, _with_servers(extent))
    with fresh_cluster_mount(parent) as mountpoint:
        for size in extent.sizes:
            yield _medians("sizes", size, mountpoint, extent.rounds, _with_size(size))
        for clients in CLIENTS:
            yield _medians("clients", clients, mountpoint, extent.rounds, _with_clients(clients, extent))
        for entries in extent.entries:
            # Once: thousands of files that were deleted slow down the creation of the next ones.
            yield _medians("entries", entries, mountpoint, 1, _with_entries(entries))


Trial = Callable[[Path, Caches], dict[str, float]]
"""Does the work of one place in a fresh directory, and returns the seconds of each series."""


def _medians(curve: str, x: int, mountpoint: Path, rounds: int, trial: Trial) -> list[Point]:
    found: dict[str, list[float]] = {}
    caches = Caches([mountpoint])
    for number in range(rounds):
        directory = mountpoint / f"{curve}-{x}-{number}"
        directory.mkdir()
        for series, seconds in trial(directory, caches).items():
            found.setdefault(series, []).append(seconds)
    return [Point(curve, series, x, median(taken) or 0.0) for series, taken in found.items()]


def _with_servers(extent: Extent) -> Trial:
    sizes = Sizes(pages=4096, files=100).scaled(extent.scale)

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


def _with_size(size: int) -> Trial:
    data = os.urandom(size)

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        path = directory / "file"
        writing, reading = Clock(), Clock()
        with writing, path.open("wb", buffering=0) as file:
            for start in range(0, size, 1 << 20):
                file.write(data[start : start + (1 << 20)])
            os.fsync(file)
        caches.settle()
        caches.drop(directory.parent)
        with reading, path.open("rb", buffering=0) as file:
            found = file.readall()
        if found != data:
            raise WrongBytes(f"{path}: other bytes than were written")
        path.unlink()
        return {"write, fsync": writing.seconds, "read, cold": reading.seconds}

    return trial


def _with_clients(clients: int, extent: Extent) -> Trial:
    files = max(*CLIENTS, round(FILES_PER_POINT * extent.scale))

    def trial(directory: Path, caches: Caches) -> dict[str, float]:
        caches.settle()
        return {"create a file of 4 KiB": create_in_parallel(directory, files, clients, SEED) / files}

    return trial


def _with_entries(entries: int) -> Trial:
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


# What comes of it


def pictures(points: list[Point]) -> dict[str, Picture]:
    """Return one picture for each curve that has points, by the curve's name."""
    described = {
        "servers": ("Cost by the number of data servers (Qr a majority, Qw=N)", "data servers", count_text),
        "sizes": ("Cost by the size of a file (N=5)", "size of the file", size_text),
        "clients": ("Cost of a file by parallel clients (N=5)", "processes that create files", count_text),
        "entries": ("Cost of an entry by the size of its directory (N=5)", "entries", count_text),
    }
    drawn = {}
    for curve, (title, x_label, x_text) in described.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            if point.curve == curve:
                lines.setdefault(point.series, []).append((point.x, point.seconds))
        series = tuple(Series(name, tuple(line)) for name, line in lines.items())
        if series:
            drawn[curve] = Picture(title, x_label, "time, less is better", x_text, time_text, series)
    return drawn


def write_pictures(points: list[Point], directory: Path) -> list[Path]:
    """Write each picture into a directory; return the files."""
    written = []
    for curve, picture in pictures(points).items():
        written.append(directory / f"{curve}.svg")
        written[-1].write_text(render_svg(picture))
    return written


def dumps(points: list[Point], version: str, machine: dict[str, str]) -> str:
    """Return the points as one JSON document."""
    document = {
        "format": FORMAT,
        "version": version,
        "machine": machine,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "points": [asdict(point) for point in points],
    }
    return json.dumps(document, indent=1) + "\n"


def time_text(seconds: float) -> str:
    """Return a round number of seconds, as "10 ms"."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor * 0.999:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds / 1e-9:g} ns"


def size_text(size: float) -> str:
    """Return a size as "64 MiB"."""
    return bytes_text(int(size)).replace(".0 ", " ")


def count_text(count: float) -> str:
    """Return a count."""
    return f"{count:g}" if count < 1e5 else f"{count:.0e}"
