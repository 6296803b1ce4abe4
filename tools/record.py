"""`quorumfs record`: client processes work on the mounts of one file system, and write down what they saw.

It judges nothing. Each client is a process of its own with a file of its own; those are merged in the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.progress import progress_bar
from wire.config import ConfigError

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
    try:
        place = Path(tempfile.mkdtemp(prefix="record-", dir=parsed.directories[0]))
        try:
            with tempfile.TemporaryDirectory() as local:
                return _record(parsed, place.name, Path(local))
        finally:
            shutil.rmtree(place)
    except OSError as error:
        raise ConfigError(str(error)) from error


def _record(parsed: argparse.Namespace, name: str, local: Path) -> int:
    spawn = multiprocessing.get_context("spawn")
    files = [local / f"{number}" for number in range(parsed.clients)]
    places = [parsed.directories[i % len(parsed.directories)] / name for i in range(parsed.clients)]
    clients = [
        spawn.Process(target=work, args=(place, f"c{number}", file, parsed.seconds))
        for number, (place, file) in enumerate(zip(places, files, strict=True))
    ]
    for client in clients:
        client.start()
    with progress_bar(len(clients), "clients", parsed.seconds * len(clients)) as bar:
        bar.describe("recording")
        for client in clients:
            client.join()
            bar.advance(parsed.seconds, 1)
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    lines.sort(key=lambda line: int(json.loads(line)["time_ns"]))
    parsed.output.write_text("".join(f"{line}\n" for line in lines))
    return int(any(client.exitcode for client in clients))


def work(place: Path, client: str, file: Path, seconds: float) -> None:
    """Call for so many seconds what random says, one line to `file` per event."""
    operations: dict[str, Callable[[Path, str], str | None]] = {
        "write": _write, "read": _read, "create": _create, "append": _append, "list": _read,
    }  # fmt: skip
    kinds = {"write": "register", "read": "register", "create": "new", "append": "list", "list": "list"}
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    with file.open("w") as output:
        number = 0
        while (now_ns := time.monotonic_ns()) < end_ns:
            number += 1
            operation = random.choice(list(operations))
            key = f"{kinds[operation]}-{now_ns // PERIOD_NS}-{random.randrange(3)}"
            value = None if operation in ("read", "list") else f"{client}-{number}"
            event = {"event": "invoke", "operation": operation, "key": key, "value": value}
            _say(output, client, event)
            try:
                seen = operations[operation](place / key, value or "")
                _say(output, client, {"event": "return", "outcome": "ok", "value": seen})
            except OSError as error:
                refused = operation == "create" and isinstance(error, FileExistsError)
                outcome = "fail" if refused else "unknown"
                _say(output, client, {"event": "return", "outcome": outcome})


def _say(output: Any, client: str, event: dict[str, Any]) -> None:
    line = json.dumps({"client": client, "time_ns": time.monotonic_ns(), **event})
    output.write(f"{line}\n")


def _write(path: Path, value: str) -> None:
    new = path.with_name(f"new-{value}")
    new.write_text(value)
    new.replace(path)


def _read(path: Path, _: str) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


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
