"""The command `bench`: the same file-system work on several directories, side by side and in turn.

It plans, takes turns, shows progress and writes what was measured; bench_work.py has the work,
bench_results.py the medians and ratios, bench_report.py draws. Exit status 1 if any piece of
work failed or read wrong bytes.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools import bench_curves, bench_micro, mounts
from tools.bench_caches import Caches
from tools.bench_cluster import fresh_cluster, fresh_cluster_mount
from tools.bench_report import print_results, render_html
from tools.bench_results import Directory, Measurement, Row, Run, dumps, left_seconds
from tools.bench_work import ROWS, Clock, Place, Sizes, Work, WrongBytes
from tools.output import bytes_text, check_writable, console
from tools.processes import ClusterError
from tools.progress import Bar, progress_bar
from tools.version import describe_version
from wire.config import ConfigError

CLUSTER_NAME = "quorumfs"


@dataclass(frozen=True)
class Plan:
    """What to do, where, and how often."""

    directories: dict[str, Path]
    """Name in the tables: absolute path."""
    works: tuple[Work, ...]
    sizes: Sizes
    scale: float
    rounds: int
    pause_seconds: float
    seed: int


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add bench."""
    parser = subparsers.add_parser(
        "bench",
        help="time the same work on several directories",
        description="Times the same file-system work on all directories, in turn. The first one is what the "
        "others are compared with. Rows: " + ", ".join(work.name for work in ROWS) + ".",
    )
    parser.add_argument("directories", nargs="*", metavar="[NAME=]DIR", help="a directory, in it a fresh one")
    parser.add_argument("--cluster", type=Path, metavar="DIR", help="also a fresh cluster, made in DIR")
    parser.add_argument(
        "--micro", action="store_true", help="single calls instead, by layer, on a fresh cluster"
    )
    parser.add_argument(
        "--curves",
        type=Path,
        metavar="DIR",
        help="how cost grows instead, on fresh clusters; pictures in DIR",
    )
    parser.add_argument(
        "--max-size", type=float, default=64.0, metavar="MIB", help="of files in curves (default: 64)"
    )
    parser.add_argument(
        "--max-entries",
        type=int,
        default=10_000,
        metavar="N",
        help="of directories in curves (default: 10000)",
    )
    parser.add_argument(
        "--max-files",
        type=int,
        default=10_000,
        metavar="N",
        help="of file systems in curves (default: 10000)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often (default: 3)")
    parser.add_argument("--only", metavar="ROW,ROW", help="these rows (or curves) alone")
    parser.add_argument("--scale", type=float, default=1.0, help="times as much work (default: 1)")
    parser.add_argument(
        "--pause", type=float, default=0.0, metavar="SECONDS", help="rest between rounds (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; return the exit status."""
    for file in (arguments.json, arguments.html):
        check_writable(file)
    if arguments.micro:
        return run_micro(arguments)
    if arguments.curves is not None:
        return run_curves(arguments)
    plan = make_plan(arguments)
    measurements: list[Measurement] = []
    with ExitStack() as stack:
        if arguments.cluster is not None:
            plan.directories[CLUSTER_NAME] = stack.enter_context(fresh_cluster_mount(arguments.cluster))
        caches = Caches(list(plan.directories.values()))
        began = datetime.now(UTC)
        places = describe_directories(plan)
        try:
            for measured in measure(plan, caches):
                measurements.append(measured)
        except BaseException:
            # What was measured is written even if it ended early.
            _write(make_run(plan, places, caches.notes(), began, measurements), arguments)
            raise
    result = make_run(plan, places, caches.notes(), began, measurements)
    print_results(result, console(wide=160))  # before the files, whose disk may be full by now
    _write(result, arguments)
    for file in filter(None, (arguments.json, arguments.html)):
        print(f"written: {file}")
    return 1 if result.failures else 0


def run_micro(arguments: argparse.Namespace) -> int:
    """Time single calls, print, write; return the exit status."""
    _check_without_directories(arguments, "--micro")
    if arguments.only:
        raise ConfigError("--only chooses rows or curves; leave it out with --micro")
    with fresh_cluster(_parent(arguments)) as cluster:
        timings = bench_micro.measure(cluster, arguments.scale)
    console().print(bench_micro.timings_table(timings))
    if arguments.json is not None:
        arguments.json.write_text(bench_micro.dumps(timings, describe_version(), describe_machine()))
        print(f"written: {arguments.json}")
    return 0


def run_curves(arguments: argparse.Namespace) -> int:
    """Measure how cost grows, draw, write; return the exit status."""
    _check_without_directories(arguments, "--curves")
    if not arguments.curves.is_dir():
        raise ConfigError(f"{arguments.curves}: is no directory; make it with: mkdir {arguments.curves}")
    extent = bench_curves.Extent(
        round(arguments.max_size * (1 << 20)),
        arguments.max_entries,
        arguments.max_files,
        arguments.scale,
        arguments.rounds,
    )
    points: list[bench_curves.Point] = []
    written: list[Path] = []
    try:
        only = [name for name in (arguments.only or "").split(",") if name]
        for found in bench_curves.measure(_parent(arguments), extent, only):
            points += found
            written = _write_curves(arguments, points)
    except (OSError, WrongBytes) as error:
        raise ClusterError(f"the work of a curve failed: {error}") from error
    finally:
        for file in written:
            print(f"written: {file}")
    return 0


def _write_curves(arguments: argparse.Namespace, points: list[bench_curves.Point]) -> list[Path]:
    """Write what was measured so far: hours of work may still be interrupted. Returns the files."""
    written = bench_curves.write_pictures(points, arguments.curves)
    if arguments.json is not None:
        arguments.json.write_text(bench_curves.dumps(points, describe_version(), describe_machine()))
        written.append(arguments.json)
    return written


def _parent(arguments: argparse.Namespace) -> Path:
    """Return where throwaway clusters are made."""
    return arguments.cluster or Path(tempfile.gettempdir())


def _check_without_directories(arguments: argparse.Namespace, option: str) -> None:
    if arguments.directories or arguments.html is not None:
        raise ConfigError(f"{option} works on fresh clusters, made in --cluster DIR; leave out DIR, --html")
    _check_numbers(arguments)


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the options ask for. Raises ConfigError."""
    directories = name_directories(arguments.directories)
    if arguments.cluster is not None and CLUSTER_NAME in directories:
        raise ConfigError(
            f"{CLUSTER_NAME} is what the fresh cluster is called; give the directory another name"
        )
    if not directories and arguments.cluster is None:
        raise ConfigError("there is nothing to measure; name a directory, or --cluster DIR")
    _check_numbers(arguments)
    sizes = Sizes().scaled(arguments.scale)
    return Plan(
        directories,
        choose_rows(arguments.only),
        sizes,
        arguments.scale,
        arguments.rounds,
        arguments.pause,
        random.randrange(1 << 32),
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 1 or arguments.pause < 0 or not 0 < arguments.scale <= 1000:
        raise ConfigError("--rounds is at least 1, --pause at least 0, and --scale above 0 and at most 1000")


def name_directories(words: Sequence[str]) -> dict[str, Path]:
    """Return the directories by their names: NAME=DIR, or DIR, which is called by its last part."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or "/" in name:
            name, text = Path(word).absolute().name or word, word
        path = Path(text).resolve()
        if not path.is_dir():
            raise ConfigError(f"{text}: is no directory; make it with: mkdir {text}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigError(f"{text}: may not be written; name another directory")
        if name in found:
            raise ConfigError(f"two directories are called {name}; tell them apart by NAME={text}")
        found[name] = path
    return found


def choose_rows(only: str | None) -> tuple[Work, ...]:
    """Return the rows of --only, in the order in which they run, or all of them."""
    if only is None:
        return ROWS
    wanted = {word.strip() for word in only.split(",")}
    names = [work.name for work in ROWS]
    if unknown := sorted(wanted - set(names)):
        raise ConfigError(f"there is no row {unknown[0]!r}; choose of {', '.join(names)}")
    return tuple(work for work in ROWS if work.name in wanted)


def turn(names: Sequence[str], round_number: int) -> list[str]:
    """Return the order of the directories in a round: each is first in its turn."""
    start = (round_number - 1) % len(names)
    return [*names[start:], *names[:start]]


def measure(plan: Plan, caches: Caches) -> Iterator[Measurement]:
    """Do all work in all directories, round by round, with a progress bar."""
    names = list(plan.directories)
    steps = [
        (number, work, name)
        for number in range(1, plan.rounds + 1)
        for work in plan.works
        for name in turn(names, number)
    ]
    progress = _Progress(plan, [(work.name, name) for _, work, name in steps])
    with ExitStack() as stack:
        bases = {name: stack.enter_context(_fresh_directory(path)) for name, path in plan.directories.items()}
        bar = stack.enter_context(progress_bar(len(steps), "steps", progress.left_seconds(plan.rounds)))
        places: dict[str, Place] = {}
        current = 0
        for number, work, name in steps:
            if number != current:
                _end_round(places.values(), plan, current, bar)
                current = number
                places = _begin_round(plan, bases, number)
            bar.describe(f"round {number}, {name}: {work.name}")
            began = time.monotonic()
            yield _measure_one(number, work, name, places[name], plan.directories[name], caches)
            taken = time.monotonic() - began
            progress.done(work.name, name, taken)
            bar.advance(taken, 1, progress.left_seconds(plan.rounds - number))


class _Progress:
    """How long the rest will take, from what was done so far."""

    def __init__(self, plan: Plan, steps: list[tuple[str, str]]) -> None:
        self._pause = plan.pause_seconds
        self._guess = {work.name: work.guess_seconds * plan.scale for work in plan.works}
        self._left = steps
        self._known: dict[tuple[str, str], list[float]] = {}

    def done(self, row: str, name: str, seconds: float) -> None:
        self._left.pop(0)
        self._known.setdefault((row, name), []).append(seconds)

    def left_seconds(self, rounds_left: int) -> float:
        return left_seconds(self._left, self._known, self._guess) + self._pause * rounds_left


def _begin_round(plan: Plan, bases: dict[str, Path], number: int) -> dict[str, Place]:
    places = {}
    for index, (name, base) in enumerate(bases.items()):
        directory = base / f"round-{number}"
        directory.mkdir()
        places[name] = Place(directory, plan.sizes, plan.seed + number * len(bases) + index)
    return places


def _end_round(places: Iterable[Place], plan: Plan, number: int, bar: Bar) -> None:
    """Give the room of the large files back, and rest. The many small ones stay to the end: some file systems
    create files slowly for minutes after many were deleted, which the next round would pay for."""
    for place in places:
        for file in (place.file, place.log):
            with suppress(OSError):
                file.unlink(missing_ok=True)
    if number and plan.pause_seconds:
        bar.describe("resting between rounds")
        time.sleep(plan.pause_seconds)
        bar.advance(plan.pause_seconds, 0)


def _measure_one(
    number: int, work: Work, name: str, place: Place, directory: Path, caches: Caches
) -> Measurement:
    clock = Clock()
    try:
        work.prepare(place)
        caches.settle()
        if work.cold:
            caches.drop(directory)
        work.run(place, clock)
    except WrongBytes as error:
        return Measurement(number, work.name, name, None, f"WRONG BYTES: {error}")
    except (OSError, subprocess.SubprocessError) as error:
        return Measurement(number, work.name, name, None, str(error))
    return Measurement(number, work.name, name, clock.seconds)


@contextmanager
def _fresh_directory(parent: Path) -> Iterator[Path]:
    try:
        made = Path(tempfile.mkdtemp(prefix="quorumfs-bench-", dir=parent))
    except OSError as error:
        raise ConfigError(f"{parent}: cannot be written: {error.strerror}; name another directory") from None
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def describe_directories(plan: Plan) -> tuple[Directory, ...]:
    """Return the directories with their file systems' types."""
    found = []
    for name, path in plan.directories.items():
        mount = mounts.file_system_of(path)
        found.append(Directory(name, str(path), mount.type if mount is not None else "?"))
    return tuple(found)


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on besides the software."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processors": str(os.cpu_count()),
        "memory": bytes_text(memory),
        "kernel": platform.release(),
        "Python": platform.python_version(),
    }


def make_run(
    plan: Plan,
    places: tuple[Directory, ...],
    notes: tuple[str, ...],
    began: datetime,
    measurements: Sequence[Measurement],
) -> Run:
    """Return what was measured with what it was measured on."""
    settings = {
        "rounds": str(plan.rounds),
        "scale": f"{plan.scale:g}",
        "pause": f"{plan.pause_seconds:g} s",
        "seed": str(plan.seed),
    }
    rows = tuple(Row(work.name, work.words(plan.sizes), work.cold) for work in plan.works)
    when = began.isoformat(timespec="seconds")
    return Run(
        when, describe_version(), describe_machine(), settings, notes, places, rows, tuple(measurements)
    )


def _write(result: Run, arguments: argparse.Namespace) -> None:
    if arguments.json is not None:
        arguments.json.write_text(dumps(result))
    if arguments.html is not None:
        arguments.html.write_text(render_html(result))
