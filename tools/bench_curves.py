"""How cost grows: of work, starts and memory; with servers, quorums, sizes, clients, entries, files, damage.

It measures on throwaway clusters what bench_trials.py does, and hands the points to bench_svg.py to draw. One
thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.bench_caches import Caches
from tools.bench_cluster import fresh_cluster, mounted
from tools.bench_memory import with_writers_and_readers
from tools.bench_results import FORMAT, median
from tools.bench_svg import Picture, Series, render_svg
from tools.bench_trials import (
    Trial,
    with_clients,
    with_damage,
    with_entries,
    with_everything,
    with_files,
    with_reads,
    with_size,
    with_writes,
)
from tools.cluster import LocalCluster
from tools.output import bytes_text
from tools.progress import progress_bar
from wire.config import ConfigError
from wire.quorum import Quorum

SERVERS = (1, 3, 5, 7)
QUORUMS = (1, 2, 3, 4, 5)
USUAL = Quorum(5, 3, 5)
CLIENTS = (1, 2, 4, 8, 16)
FILES_PER_POINT = 320
LEAST_BYTES, LEAST_ENTRIES, LEAST_FILES, LEAST_MEBIBYTES = 1024, 100, 1000, 4


@dataclass(frozen=True)
class Extent:
    """How far the curves go. `scale` is of the work of each point where the curve does not say it."""

    most_bytes: int = 64 << 20
    most_entries: int = 10_000
    most_files: int = 10_000
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

    @property
    def files(self) -> list[int]:
        """Files of file systems, ten times as many each."""
        return (
            _steps(LEAST_FILES, self.most_files, 10) if self.most_files >= LEAST_FILES else [self.most_files]
        )

    @property
    def mebibytes(self) -> list[int]:
        """What a data server lost, four times as much each."""
        return _steps(LEAST_MEBIBYTES, max(LEAST_MEBIBYTES, self.most_bytes >> 20), 4)


@dataclass(frozen=True)
class Point:
    """One median, in seconds or bytes: on which curve, of which series, at which place."""

    curve: str
    series: str
    x: float
    value: float


def _steps(first: int, last: int, factor: int) -> list[int]:
    """Return places from `first` on, each so many times the one before, and `last` at the end."""
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return [*found, last] if found[-1] < last else found


def measure(parent: Path, extent: Extent, only: Sequence[str] = ()) -> Iterator[list[Point]]:
    """Measure all curves, or only these, with a progress bar; the clusters are made in `parent`.

    Yields:
        The points of one place after the other, so that what was measured can be kept at once.

    Raises:
        ConfigError: there is no such curve.
    """
    if unknown := sorted({*only} - {*CURVES}):
        raise ConfigError(f"there is no curve {', '.join(unknown)}; choose of {', '.join(CURVES)}")
    chosen = [CURVES[name] for name in CURVES if not only or name in only]
    steps = sum(places(extent) for places, _ in chosen)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(steps, "points", steps))
        for _, work in chosen:
            for found in work(parent, extent):
                bar.describe(f"{found[0].curve}: {found[0].x:g}")
                bar.advance(1.0, 1)
                yield found


def _servers(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    for servers in SERVERS:
        with _cluster(parent, Quorum(servers, servers // 2 + 1, servers)) as (_, mountpoint):
            yield _medians("servers", servers, mountpoint, extent.rounds, with_everything(extent.scale))


def _start(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    for servers in SERVERS:
        quorum = Quorum(servers, servers // 2 + 1, servers)
        taken = [_start_seconds(parent, quorum) for _ in range(extent.rounds)]
        yield [Point("start", "start to ready, mount included", servers, median(taken) or 0.0)]


def _start_seconds(parent: Path, quorum: Quorum) -> float:
    began = time.perf_counter()
    with _cluster(parent, quorum) as (_, mountpoint):
        (mountpoint / "file").write_text("written\n")
        return time.perf_counter() - began


def _quorums(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    for size in QUORUMS:
        with _cluster(parent, Quorum(5, size, 5)) as (_, mountpoint):
            yield _medians("quorums", size, mountpoint, extent.rounds, with_reads(extent.scale))
        with _cluster(parent, Quorum(5, 5, size)) as (_, mountpoint):
            yield _medians("quorums", size, mountpoint, extent.rounds, with_writes(extent.scale))


def _sizes(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    with _cluster(parent, USUAL) as (_, mountpoint):
        for size in extent.sizes:
            yield _medians("sizes", size, mountpoint, extent.rounds, with_size(size))


def _clients(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    files = max(*CLIENTS, round(FILES_PER_POINT * extent.scale))
    with _cluster(parent, USUAL) as (_, mountpoint):
        for clients in CLIENTS:
            yield _medians("clients", clients, mountpoint, extent.rounds, with_clients(clients, files))


def _memory(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    for clients in CLIENTS:
        with _cluster(parent, USUAL) as (cluster, mountpoint):
            trial = with_writers_and_readers(cluster, clients, round(extent.most_bytes * extent.scale))
            yield _medians("memory", clients, mountpoint, 1, trial)


def _entries(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    with _cluster(parent, USUAL) as (_, mountpoint):
        for entries in extent.entries:
            # Once: thousands of files that were deleted slow down the creation of the next ones.
            yield _medians("entries", entries, mountpoint, 1, with_entries(entries))


def _damage(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    for mebibytes in extent.mebibytes:
        with _cluster(parent, USUAL) as (cluster, mountpoint):
            yield _medians("damage", mebibytes, mountpoint, 1, with_damage(cluster, mebibytes))


def _files(parent: Path, extent: Extent) -> Iterator[list[Point]]:
    with _cluster(parent, USUAL) as (cluster, mountpoint):
        for count in extent.files:
            yield _medians("files", count, mountpoint, 1, with_files(cluster, count, mountpoint))


CURVES: dict[str, tuple[Callable[[Extent], int], Callable[[Path, Extent], Iterator[list[Point]]]]] = {
    "start": (lambda _: len(SERVERS), _start),
    "servers": (lambda _: len(SERVERS), _servers),
    "quorums": (lambda _: 2 * len(QUORUMS), _quorums),
    "sizes": (lambda extent: len(extent.sizes), _sizes),
    "clients": (lambda _: len(CLIENTS), _clients),
    "memory": (lambda _: len(CLIENTS), _memory),
    "entries": (lambda extent: len(extent.entries), _entries),
    "damage": (lambda extent: len(extent.mebibytes), _damage),
    "files": (lambda extent: len(extent.files), _files),
}
"""Of each curve, by its name: how many places it has, and what yields the points of one after the other."""


@contextmanager
def _cluster(parent: Path, quorum: Quorum) -> Iterator[tuple[LocalCluster, Path]]:
    settings = {"servers": quorum.servers, "read_quorum": quorum.read, "write_quorum": quorum.write}
    with fresh_cluster(parent, **settings) as cluster, mounted(cluster) as mountpoint:
        yield cluster, mountpoint


def _medians(curve: str, x: int, mountpoint: Path, rounds: int, trial: Trial) -> list[Point]:
    found: dict[str, list[float]] = {}
    caches = Caches([mountpoint])
    for number in range(rounds):
        directory = mountpoint / f"{curve}-{x}-{number}"
        directory.mkdir()
        for series, value in trial(directory, caches).items():
            found.setdefault(series, []).append(value)
    return [Point(curve, series, x, median(taken) or 0.0) for series, taken in found.items()]


# What comes of it


def pictures(points: list[Point]) -> dict[str, Picture]:
    """Return one picture for each curve that has points, by the curve's name."""
    described = {
        "start": ("From nothing to a mount that is written to", "data servers", count_text),
        "servers": ("Cost by the number of data servers (Qr a majority, Qw=N)", "data servers", count_text),
        "sizes": ("Cost by the size of a file (N=5)", "size of the file", size_text),
        "quorums": ("Cost by the size of a quorum (N=5; the other quorum is 5)", "Qr or Qw", count_text),
        "clients": ("Cost of a file by parallel clients (N=5)", "processes that create files", count_text),
        "memory": ("Peak of memory by parallel writers and readers (N=5)", "files at once", count_text),
        "entries": ("Cost of an entry by the size of its directory (N=5)", "entries", count_text),
        "files": ("Cost by the number of files in the file system (N=5)", "files", count_text),
        "damage": ("Cost of healing one data server, a MiB (N=5)", "what it lost", mebibytes_text),
    }
    drawn = {}
    for curve, (title, x_label, x_text) in described.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            if point.curve == curve:
                lines.setdefault(point.series, []).append((point.x, point.value))
        series = tuple(Series(name, tuple(line)) for name, line in lines.items())
        if series:
            y_label, y_text = MEASURES.get(curve, ("time, less is better", time_text))
            drawn[curve] = Picture(title, x_label, y_label, x_text, y_text, series)
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
    return f"{count:,g}" if count < 1e5 else f"{count:,.0f}"


def mebibytes_text(count: float) -> str:
    """Return so many MiB as "64 MiB"."""
    return size_text(count * (1 << 20))


MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {"memory": ("peak, less is better", size_text)}
"""What a curve measures, where that is not time."""
