"""The story of the README, played on a throwaway cluster: every step as the command and what it printed.

    python -m tools.demo                    play it; exit status 0 only if each step was as promised
    python -m tools.demo --readme FILE      play it, and put the transcript into FILE between its markers

The steps are data; what a step promises is judged by a pure function. It must leave nothing behind.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import LocalCluster
from tools.mounts import check_fuse
from tools.processes import interruptible
from tools.state_directory import forget_rings
from wire.config import ConfigError

MARKERS = ("<!-- story: begin -->\n", "<!-- story: end -->\n")
STEP_SECONDS = 60.0
RETRY_SECONDS = 0.3
SOURCES = "sources"
PACKAGES = ("asyncio", "ctypes", "email", "encodings", "importlib", "multiprocessing", "unittest", "xml")
"""A real source tree: these parts of Python's library, and its single modules; copied in a second or so."""


@dataclass(frozen=True)
class Step:
    """A command and what it promises.

    `output` must be exactly what it prints (None: anything), each of `tells` must be in it and none
    of `omits`. It must end within `within_seconds`; with `retry_seconds` it may be repeated for so long
    until it keeps its promise, as things that heal by themselves do.
    """

    command: str
    output: str | None = None
    tells: tuple[str, ...] = ()
    omits: tuple[str, ...] = ()
    fails: bool = False
    within_seconds: float = STEP_SECONDS
    retry_seconds: float = 0.0


@dataclass(frozen=True)
class Chapter:
    """Steps under one heading."""

    title: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Done:
    """What a step did."""

    output: str
    status: int
    seconds: float


READ_ONLY = "Read-only file system"
INPUT_OUTPUT = "Input/output error"

COPY = f"cp -r {SOURCES} mnt/copy-%d & sleep 0.1"
RESUME = f"wait $! && diff -r {SOURCES} mnt/copy-%d && echo the same"

STORY: tuple[Chapter, ...] = (
    Chapter(
        "One command: five data servers, mounted on ./mnt",
        (
            Step("quorumfs up | head -1", tells=("mounted on", "N=5", "Qr=3", "Qw=5")),
            Step("echo 1234 > mnt/a.txt; cat mnt/a.txt", "1234\n"),
            Step(f"cp -r {SOURCES} mnt/src && diff -r {SOURCES} mnt/src && echo the same", "the same\n"),
            Step(
                "head -c 64M /dev/urandom > big; cp big mnt/big; cmp big mnt/big && echo the same",
                "the same\n",
            ),
        ),
    ),
    Chapter(
        "Two of five replicas corrupt: outvoted, and repaired behind your back",
        (
            Step("quorumfs fault corrupt mnt/a.txt --servers 1,2", tells=("data server 1", "data server 2")),
            Step("cat mnt/a.txt", "1234\n"),
            Step(
                "quorumfs explain mnt/a.txt", tells=("good", "answer"), omits=("corrupt",), retry_seconds=10
            ),
            Step("ls .quorumfs/data-1/quarantine", tells=(".",)),
        ),
    ),
    Chapter(
        "Three corrupt, then all five with the same wrong bytes: an error, never wrong bytes",
        (
            Step("quorumfs fault corrupt mnt/a.txt --servers 1-3 --different", tells=("data server 3",)),
            Step("cat mnt/a.txt", tells=(INPUT_OUTPUT,), omits=("1234",), fails=True),
            Step("quorumfs fault corrupt mnt/a.txt --servers 1-5 --kind lie | tail -1", tells=("server 5",)),
            Step("cat mnt/a.txt", f"cat: mnt/a.txt: {INPUT_OUTPUT}\n", fails=True),
            Step("echo 5678 > mnt/a.txt; cat mnt/a.txt", "5678\n"),
        ),
    ),
    Chapter(
        "Two servers down: files can be read, and writes are refused at once",
        (
            Step("quorumfs fault terminate 1 2", tells=("data-1", "data-2")),
            Step("cat mnt/a.txt", "5678\n"),
            Step("echo 9012 > mnt/a.txt", tells=(READ_ONLY,), fails=True, within_seconds=2),
            Step("quorumfs status | head -2", tells=("3 of 5", "Qw=5", "quorumfs up")),
            Step("cat mnt/a.txt", "5678\n"),
            Step("quorumfs fault terminate 3", tells=("data-3",)),
            Step("cat mnt/a.txt", f"cat: mnt/a.txt: {INPUT_OUTPUT}\n", fails=True, within_seconds=16),
        ),
    ),
    Chapter(
        "They come back, one of them blank: refilled by itself",
        (
            Step("quorumfs fault restart 1 2; quorumfs fault restart 3 --blank", tells=("blank",)),
            Step("quorumfs status | head -1", tells=("healthy", "read and written"), retry_seconds=30),
            Step("cmp big mnt/big && cat mnt/a.txt", "5678\n"),
        ),
    ),
    Chapter(
        "kill -9 the mediator, then the metadata server, each in the middle of a copy: it goes on",
        tuple(
            Step(
                f"{COPY % turn}; quorumfs fault terminate {server}; jobs; "
                f"quorumfs fault restart {server}; {RESUME % turn}",
                tells=(f"{server}: terminated", "Running", f"{server}: restarted", "the same"),
                omits=("differ", "Only in", "cannot"),
            )
            for turn, server in enumerate(("mediator", "metaserver"), 1)
        ),
    ),
    Chapter(
        "kill -9 everything, the mount too, and start again: every closed file is whole",
        (
            Step(
                "quorumfs fault terminate mount-1 mediator metaserver 1 2 3 4 5 | tail -1",
                tells=("data-5: terminated",),
            ),
            Step("quorumfs up | head -1", tells=("mounted on",)),
            Step(
                f"cat mnt/a.txt; cmp big mnt/big && diff -r {SOURCES} mnt/copy-1 && echo the same",
                "5678\nthe same\n",
            ),
            Step("quorumfs down", tells=("stopped",)),
        ),
    ),
)


def broken_promise(step: Step, done: Done) -> str:
    """Return which promise of a step was broken, in words; "" if it kept all."""
    if (done.status != 0) != step.fails:
        return f"the exit status {done.status} was not expected"
    if step.output is not None and done.output != step.output:
        return f"it should have printed {step.output!r}"
    for text in step.tells:
        if text not in done.output:
            return f"it should have told {text!r}"
    for text in step.omits:
        if text in done.output:
            return f"it should not have told {text!r}"
    if done.seconds > step.within_seconds:
        return f"it took {done.seconds:.1f} s, not at most {step.within_seconds:g} s"
    return ""


def play(directory: Path, story: Sequence[Chapter] = STORY) -> Iterator[str]:
    """Play the story in a directory and yield the transcript line by line.

    Raises:
        BrokenPromiseError: a step was not as promised; the story ends there.
    """
    for chapter in story:
        yield f"# {chapter.title}"
        for step in chapter.steps:
            yield f"$ {step.command}"
            done, waited_seconds = _do(step, directory)
            if waited_seconds:
                yield f"# (after {waited_seconds:.1f} s)"
            yield from (line.rstrip() for line in done.output.splitlines())
            if broken := broken_promise(step, done):
                raise BrokenPromiseError(f"{step.command}: {broken}")
        yield ""


class BrokenPromiseError(Exception):
    """A step of the story was not as promised."""


def _do(step: Step, directory: Path) -> tuple[Done, float]:
    """Carry a step out, again and again if it may take a while to come true; return how long it waited."""
    began = time.monotonic()
    waited_seconds = 0.0
    while True:
        done = _run(step.command, directory)
        if not broken_promise(step, done) or waited_seconds >= step.retry_seconds:
            return done, waited_seconds
        time.sleep(RETRY_SECONDS)
        waited_seconds = time.monotonic() - began


def _run(command: str, directory: Path) -> Done:
    python = shlex.quote(sys.executable)
    prelude = f'quorumfs() {{ {python} -P -m tools.cli "$@"; }}\n'
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "LC_ALL": "C", "COLUMNS": "110"}
    environment.pop("QUORUMFS_STATE", None)
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", prelude + command],
            check=False,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=2 * STEP_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        return Done(str(error), 124, time.monotonic() - began)
    output = done.stdout.replace("bash: line 2: ", "bash: ").replace(f"{directory}/", "")
    return Done(output, done.returncode, time.monotonic() - began)


def readme_with(text: str, transcript: str) -> str:
    """Return a README's text with the transcript between its markers. Raises ConfigError."""
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(
            f"it has no lines {begin.strip()} and {end.strip()}; add them where the story belongs"
        )
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}```console\n{transcript.strip()}\n```\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the story; return the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description="Play the story of the README.")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the transcript into FILE")
    parsed = parser.parse_args(arguments)
    try:
        check_fuse()
        if parsed.readme is not None:
            readme_with(parsed.readme.read_text(), "")
        with interruptible():
            lines = _play_in_a_throwaway_directory()
    except ConfigError as error:
        print(f"quorumfs: {error}", file=sys.stderr)
        return 2
    except BrokenPromiseError as error:
        print(f"quorumfs: not as promised: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if parsed.readme is not None:
        parsed.readme.write_text(readme_with(parsed.readme.read_text(), "\n".join(lines)))
    return 0


def _play_in_a_throwaway_directory() -> list[str]:
    lines = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quorumfs-demo-") as name:
        directory = Path(name)
        library = Path(sysconfig.get_paths()["stdlib"])
        for package in PACKAGES:
            target = directory / SOURCES / package
            shutil.copytree(library / package, target, ignore=shutil.ignore_patterns("__pycache__"))
        for module in library.glob("*.py"):
            shutil.copy(module, directory / SOURCES)
        try:
            for line in play(directory):
                lines.append(line)
                print(line, flush=True)
        finally:
            if (directory / ".quorumfs" / "cluster.toml").exists():
                cluster = LocalCluster.open(directory / ".quorumfs")
                cluster.close()
                forget_rings(cluster.config)
    print(f"Every step was as promised, in {time.monotonic() - began:.0f} s.")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
