"""`quorumfs record`: client processes work on the mounts of one file system, and write down what they saw.

It judges nothing. Each client is a process of its own with a file of its own; those are merged in the end.
"""

from __future__ import annotations

import argparse
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from tools.history.record import READS
from tools.output import check_writable
from tools.progress import progress_bar
from wire.config import ConfigError

NAMES = ("a", "b", "c")
"""What a file that is renamed again and again is called."""
AFTER_FAILURE_SECONDS = 0.1
LIST_BYTES_MAX = 1 << 20
PERIOD_NS = 1_000_000_000
"""How long a key is in use: this bounds how long files grow, and how far the check searches."""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("record", help="record what clients see on mounts, for check-history")
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Record; return 0, or 1 if a client died. The directory of the clients is removed afterwards."""
    if not 1 <= parsed.clients <= 256 or not 0 < parsed.seconds <= 86400:
        raise ConfigError("--clients is from 1 to 256, --seconds above 0 and at most 86400")
    check_writable(parsed.output)
    try:
        place = Path(tempfile.mkdtemp(prefix="record-", dir=parsed.directories[0]))
        try:
            _require_same(parsed.directories, place.name)
            with tempfile.TemporaryDirectory() as local:
                return _record(parsed, place.name, Path(local))
        finally:
            shutil.rmtree(place)
    except OSError as error:
        raise ConfigError(str(error)) from error


def _require_same(directories: Sequence[Path], name: str) -> None:
    """Raise ConfigError unless the clients' directory is in all: elsewhere every call would fail."""
    for directory in directories:
        if not (directory / name).is_dir():
            raise ConfigError(
                f"{directory} does not show what was made in {directories[0]}: name directories of one file "
                "system that is mounted there"
            )


def _record(parsed: argparse.Namespace, name: str, local: Path) -> int:
    spawn = multiprocessing.get_context("spawn")
    files = [local / f"{number}" for number in range(parsed.clients)]
    mounts = [parsed.directories[number % len(parsed.directories)] for number in range(parsed.clients)]
    clients = [
        spawn.Process(target=work, args=(mount / name, f"c{number}", file, parsed.seconds, str(mount)))
        for number, (mount, file) in enumerate(zip(mounts, files, strict=True))
    ]
    try:
        with _interrupts_kept_from_children():
            for client in clients:
                client.start()
        with progress_bar(len(clients), "clients", parsed.seconds * len(clients)) as bar:
            bar.describe("recording")
            for client in clients:
                client.join()
                bar.advance(parsed.seconds, 1)
    finally:
        # They work in the directory that is removed now.
        left = [client for client in clients if client.is_alive()]
        for client in left:
            client.terminate()
        for client in left:
            client.join()
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    lines.sort(key=lambda line: int(json.loads(line)["time_ns"]))
    parsed.output.write_text("".join(f"{line}\n" for line in lines))
    return int(any(client.exitcode for client in clients))


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Processes started in this block see no Ctrl-C, which reaches them too: who started them ends them."""
    resource_tracker.ensure_running()  # the first process would start it, which lets interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(
    place: Path, client: str, file: Path, seconds: float, mount: str, left_out: Collection[str] = ()
) -> None:
    """Call for so many seconds what random says, but nothing `left_out`; one line to `file` per event."""
    operations = [operation for operation in _DEEDS if operation not in left_out]
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    with file.open("w") as output:
        number = 0
        while (now_ns := time.monotonic_ns()) < end_ns:
            number += 1
            operation = random.choice(operations)
            kinds, act = _DEEDS[operation]
            kind = random.choice(kinds.split())
            key = f"{kind}-{now_ns // PERIOD_NS}-{random.randrange(3)}"
            path, value = place / key, f"{client}-{number:06}"
            if operation == "rename":
                value = " ".join(random.sample(NAMES, 2))
            elif operation == "place":
                value = f"{NAMES[0]} {value}"
            event = {"event": "invoke", "operation": operation, "key": key, "mount": mount}
            _say(output, client, event if operation in READS else {**event, "value": value})
            try:
                seen = act(path, value)
                _say(output, client, {"event": "return", "outcome": "ok", "value": seen})
            except OSError as error:
                refused = isinstance(error, _REFUSALS.get(operation, ()))
                outcome = "fail" if refused else "unknown"
                _say(output, client, {"event": "return", "outcome": outcome})
                if not refused:
                    time.sleep(AFTER_FAILURE_SECONDS)


def _say(output: Any, client: str, event: dict[str, Any]) -> None:
    line = json.dumps({"client": client, "time_ns": time.monotonic_ns(), **event})
    output.write(f"{line}\n")


def _write(path: Path, value: str) -> None:
    """Write in place; all values are equally long."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        if os.write(file, value.encode()) != len(value):
            raise OSError("a short write")
    finally:
        os.close(file)


def _replace(path: Path, value: str) -> None:
    new = path.with_name(f"new-{value}")
    new.write_text(value)
    new.replace(path)


def _read(path: Path, _: str) -> str | None:
    try:
        return path.read_text(errors="replace") or None
    except FileNotFoundError:
        _require_mount(path.parent)
        return None


def _list(path: Path, _: str) -> str:
    """Read in one call: between two, a record that is not acknowledged yet may move."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        _require_mount(path.parent)
        return ""
    try:
        return os.read(file, LIST_BYTES_MAX).decode(errors="replace")
    finally:
        os.close(file)


def _create(path: Path, _: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def _append(path: Path, value: str) -> None:
    record = f"{value}\n".encode()
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        if os.write(file, record) != len(record):
            raise OSError("a short write")
        os.fsync(file)
    finally:
        os.close(file)


def _place(path: Path, value: str) -> None:
    """Only who makes the chain's directory makes its file."""
    name, _, content = value.partition(" ")
    path.mkdir()
    new = path.with_name(f"new-{content}")
    new.write_text(content)
    new.rename(path / name)


def _rename(path: Path, value: str) -> None:
    old, new = value.split(" ")
    try:
        (path / old).rename(path / new)
    except FileNotFoundError:
        _require_mount(path.parent)
        raise


def _look(path: Path, _: str) -> str:
    name = random.choice(NAMES)
    try:
        return f"{name} {(path / name).read_text(errors='replace')}"
    except FileNotFoundError:
        _require_mount(path.parent)
        return name


def _names(path: Path, _: str) -> str:
    try:
        return " ".join(sorted(found.name for found in path.iterdir()))
    except FileNotFoundError:
        _require_mount(path.parent)
        return ""


def _require_mount(place: Path) -> None:
    """Raise OSError if not even the directory of the clients is there: it is a mount that is gone."""
    if not place.is_dir():
        raise OSError(errno.ENOTCONN, f"not mounted: {place}")


_DEEDS: dict[str, tuple[str, Callable[[Path, str], str | None]]] = {
    "write": ("written", _write),
    "replace": ("register", _replace),
    "read": ("written register", _read),
    "create": ("new", _create),
    "append": ("list", _append),
    "list": ("list", _list),
    "place": ("chain", _place),
    "rename": ("chain", _rename),
    "look": ("chain", _look),
    "names": ("chain", _names),
}
"""Each operation's kinds of keys, and how it is done."""
_REFUSALS: dict[str, type[OSError]] = {
    "create": FileExistsError,
    "place": FileExistsError,
    "rename": FileNotFoundError,
}
"""Answers that say that nothing was done."""
