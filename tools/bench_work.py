"""The pieces of work that a benchmark times: one small function each, on any directory.

A piece runs the calls of interest on the clock, and compares what it read with what was written while the
clock stands still: wrong bytes raise WrongBytes. It must not know what kind of file system it works on, nor
drop caches or print. A Place belongs to one thread.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.bench_content import CHUNK_BYTES, FILE, LOG, PAGE_BYTES, PAGES_PER_CHUNK, SMALL, Content
from tools.bench_parallel import create_file, create_in_parallel, write_all
from tools.output import bytes_text

LIST_SECONDS = 300.0


class WrongBytes(Exception):
    """A file system gave other bytes than were written, and no error."""


class Clock:
    """A stopwatch: the seconds that passed within its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True)
class Sizes:
    """How much work the pieces are."""

    pages: int = 65536
    """Of the large file: 256 MiB."""
    random_calls: int = 1000
    appends: int = 200
    files: int = 500
    processes: int = 4

    def scaled(self, scale: float) -> Sizes:
        """Return these sizes times `scale`, at least one of each; the processes stay."""

        def times(count: int) -> int:
            return max(1, round(count * scale))

        return Sizes(
            times(self.pages),
            times(self.random_calls),
            times(self.appends),
            times(self.files),
            self.processes,
        )

    @property
    def words(self) -> dict[str, str]:
        """What the titles of the pieces of work are filled with."""
        size = bytes_text(self.pages * PAGE_BYTES).replace(".0 ", " ")
        return {
            "size": size,
            "calls": str(self.random_calls),
            "appends": str(self.appends),
            "files": str(self.files),
            "processes": str(self.processes),
        }


class Place:
    """A fresh directory, and what was written in it."""

    def __init__(self, directory: Path, sizes: Sizes, seed: int) -> None:
        self.directory = directory
        self.sizes = sizes
        self.content = Content(seed)
        self.random = random.Random(seed)
        self.versions: dict[int, int] = {}
        """How often each page of the large file was rewritten."""
        self.whole: set[Path] = set()
        """What is there as this place believes it: no piece of work on it has failed half-way."""

    @property
    def file(self) -> Path:
        """The large file."""
        return self.directory / "file"

    @property
    def log(self) -> Path:
        """The file that is appended to."""
        return self.directory / "log"

    @property
    def small(self) -> Path:
        """The directory of small files."""
        return self.directory / "small"

    @property
    def parallel(self) -> Path:
        """The directory of small files that several processes make."""
        return self.directory / "parallel"

    def small_names(self) -> list[str]:
        """Return the names of all small files in order."""
        return [f"{number:06d}" for number in range(self.sizes.files)]


def nothing(place: Place) -> None:
    """What a piece of work needs that starts with nothing."""


def need_file(place: Place) -> None:
    """Have the large file there."""
    if place.file not in place.whole:
        write_file(place, Clock())


def need_file_read(place: Place) -> None:
    """Have the large file there, read a moment ago."""
    need_file(place)
    read_file(place, Clock())


def need_small(place: Place) -> None:
    """Have the small files there."""
    if place.small not in place.whole:
        shutil.rmtree(place.small, ignore_errors=True)
        create_small(place, Clock())


# The large file


def write_file(place: Place, clock: Clock) -> None:
    """Write the large file from the beginning to the end, fsync, close."""
    place.whole.discard(place.file)
    place.versions.clear()
    buffer = place.content.buffer()
    with clock, ExitStack() as stack:
        file = os.open(place.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        stack.callback(os.close, file)
        for first_page in range(0, place.sizes.pages, PAGES_PER_CHUNK):
            place.content.fill(buffer, first_page, {})
            write_all(file, memoryview(buffer)[: _chunk_bytes(place, first_page)])
        os.fsync(file)
    place.whole.add(place.file)


def read_file(place: Place, clock: Clock) -> None:
    """Read the large file from the beginning to the end."""
    expected, found = place.content.buffer(), bytearray(CHUNK_BYTES)
    with ExitStack() as stack:
        with clock:
            file = os.open(place.file, os.O_RDONLY)
        stack.callback(os.close, file)
        for first_page in range(0, place.sizes.pages, PAGES_PER_CHUNK):
            length = _chunk_bytes(place, first_page)
            with clock:
                count = _read_full(file, memoryview(found)[:length])
            place.content.fill(expected, first_page, place.versions)
            _check(place.file, first_page * PAGE_BYTES, expected[:length], found[:count])
        with clock:
            rest = os.read(file, 1)
        _check(place.file, place.sizes.pages * PAGE_BYTES, b"", rest)


def write_pages(place: Place, clock: Clock) -> None:
    """Overwrite single pages all over the large file, then fsync."""
    place.whole.discard(place.file)
    with clock, ExitStack() as stack:
        file = os.open(place.file, os.O_WRONLY)
        stack.callback(os.close, file)
        for _ in range(place.sizes.random_calls):
            number = place.random.randrange(place.sizes.pages)
            version = place.versions[number] = place.versions.get(number, 0) + 1
            data = place.content.page(FILE, number, version)
            if os.pwrite(file, data, number * PAGE_BYTES) != PAGE_BYTES:
                raise OSError(f"{place.file}: a page was written in part only")
        os.fsync(file)
    place.whole.add(place.file)


def read_pages(place: Place, clock: Clock) -> None:
    """Read single pages all over the large file."""
    with ExitStack() as stack:
        with clock:
            file = os.open(place.file, os.O_RDONLY)
        stack.callback(os.close, file)
        for _ in range(place.sizes.random_calls):
            number = place.random.randrange(place.sizes.pages)
            with clock:
                found = os.pread(file, PAGE_BYTES, number * PAGE_BYTES)
            expected = place.content.page(FILE, number, place.versions.get(number, 0))
            _check(place.file, number * PAGE_BYTES, expected, found)


def append(place: Place, clock: Clock) -> None:
    """Append pages to a file, with an fsync after each."""
    pages = [place.content.page(LOG, number) for number in range(place.sizes.appends)]
    with clock, ExitStack() as stack:
        file = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        stack.callback(os.close, file)
        for page in pages:
            write_all(file, memoryview(page))
            os.fsync(file)
    _check(place.log, 0, b"".join(pages), place.log.read_bytes())


# Many small files


def create_small(place: Place, clock: Clock) -> None:
    """Create the small files: open, write, close."""
    pages = [place.content.page(SMALL, number) for number in range(place.sizes.files)]
    with clock:
        place.small.mkdir()
        for name, page in zip(place.small_names(), pages, strict=True):
            create_file(place.small / name, page)
    place.whole.add(place.small)


def create_small_in_parallel(place: Place, clock: Clock) -> None:
    """Create as many small files in one other directory from several processes at once."""
    place.parallel.mkdir()
    sizes = place.sizes
    clock.seconds += create_in_parallel(place.parallel, sizes.files, sizes.processes, place.content.seed)
    for number, name in enumerate(place.small_names()):
        _check(
            place.parallel / name, 0, place.content.page(SMALL, number), (place.parallel / name).read_bytes()
        )


def list_small(place: Place, clock: Clock) -> None:
    """Run `ls -l` on the directory of small files."""
    _run_ls(Path(os.devnull))  # off the clock, so that ls itself is not read from disk on it
    with clock:
        done = _run_ls(place.small)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip())
    lines = [line.split() for line in done.stdout.decode(errors="replace").splitlines()[1:]]
    found = [(line[4], line[-1]) for line in lines]
    if found != [(str(PAGE_BYTES), name) for name in place.small_names()]:
        raise WrongBytes(f"{place.small}: ls -l shows other files or sizes than were made")


def stat_small(place: Place, clock: Clock) -> None:
    """List the names of the small files, and look at each."""
    with clock:
        names = _names(place.small)
        found = [(place.small / name).stat() for name in names]
    sizes_right = all(attributes.st_size == PAGE_BYTES for attributes in found)
    if names != place.small_names() or not sizes_right:
        raise WrongBytes(f"{place.small}: stat shows other files or sizes than were made")


def read_small(place: Place, clock: Clock) -> None:
    """List the names of the small files, and read each."""
    with clock:
        names = _names(place.small)
    if names != place.small_names():
        raise WrongBytes(f"{place.small}: it lists other names than were made")
    for number, name in enumerate(names):
        with clock:
            found = _read_small(place.small / name)
        _check(place.small / name, 0, place.content.page(SMALL, number), found)


def delete_small(place: Place, clock: Clock) -> None:
    """Delete the small files and their directory."""
    place.whole.discard(place.small)
    with clock:
        for name in _names(place.small):
            (place.small / name).unlink()
        place.small.rmdir()


@dataclass(frozen=True)
class Work:
    """A row of the benchmark."""

    name: str
    """For --only and programs."""
    title: str
    """For people; to be filled from Sizes.words."""
    cold: bool
    """Whether caches are dropped before."""
    prepare: Callable[[Place], None]
    """Off the clock: have there what the work needs."""
    run: Callable[[Place, Clock], None]
    guess_seconds: float
    """About how long it takes at full size: for the time left, until it is known."""

    def words(self, sizes: Sizes) -> str:
        """Return the title for people."""
        return self.title.format(**sizes.words)


ROWS: tuple[Work, ...] = (
    Work("write", "write {size}, fsync", False, nothing, write_file, 3.0),
    Work("read-cold", "read it, caches dropped", True, need_file, read_file, 0.6),
    Work("read-again", "read it again", False, need_file_read, read_file, 0.6),
    Work("random-write", "{calls} random 4 KiB writes, fsync", False, need_file, write_pages, 0.5),
    Work("random-read", "{calls} random 4 KiB reads, caches dropped", True, need_file, read_pages, 0.4),
    Work("append", "{appends} appends of 4 KiB, each fsynced", False, nothing, append, 0.3),
    Work("create", "create {files} files of 4 KiB", False, nothing, create_small, 1.0),
    Work(
        "create-parallel",
        "the same from {processes} processes",
        False,
        nothing,
        create_small_in_parallel,
        1.5,
    ),
    Work("list", "ls -l of {files}, caches dropped", True, need_small, list_small, 0.1),
    Work("stat", "stat {files}, caches dropped", True, need_small, stat_small, 0.1),
    Work("read-small", "read {files} small files, caches dropped", True, need_small, read_small, 0.5),
    Work("delete", "delete {files}", False, need_small, delete_small, 0.5),
)
"""All rows in the order in which they run: later ones find there what earlier ones wrote."""


def _chunk_bytes(place: Place, first_page: int) -> int:
    return min(PAGES_PER_CHUNK, place.sizes.pages - first_page) * PAGE_BYTES


def _run_ls(path: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["ls", "-l", "--", str(path)],
        capture_output=True,
        check=False,
        timeout=LIST_SECONDS,
        env={**os.environ, "LC_ALL": "C"},
    )


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _read_small(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        found = os.read(file, 2 * PAGE_BYTES)
        return found + os.read(file, 2 * PAGE_BYTES)
    finally:
        os.close(file)


def _read_full(file: int, into: memoryview) -> int:
    total = 0
    while total < len(into) and (count := os.readv(file, [into[total:]])):
        total += count
    return total


def _check(path: Path, offset: int, expected: bytes | bytearray, found: bytes | bytearray) -> None:
    if expected != found:
        length = len(found)
        raise WrongBytes(f"{path}: {length} bytes read at {offset} are not those that were written there")
