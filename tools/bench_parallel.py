"""Small files made by several processes at once, for the benchmark.

The processes are started before the clock runs, and begin together; the work has taken the time from the
first's beginning to the last's end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from tools.bench_content import SMALL, Content

READY_SECONDS = 60.0
WORK_SECONDS = 600.0


def create_in_parallel(directory: Path, files: int, processes: int, seed: int) -> float:
    """Create `files` files of 4 KiB, process k those with a number that leaves k; return the seconds.

    Raises:
        OSError: a process could not create one, or did not come to its end.
    """
    # Not forked: the parent has threads, and a fork would copy the locks that they hold.
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        ends: list[Connection] = []
        for first in range(processes):
            ours, theirs = context.Pipe()
            stack.callback(ours.close)
            numbers = range(first, files, processes)
            worker = context.Process(
                target=_create_files, args=(theirs, directory, numbers, seed), daemon=True
            )
            worker.start()
            theirs.close()
            stack.callback(worker.join, READY_SECONDS)
            stack.callback(worker.terminate)
            ends.append(ours)
        for end in ends:
            _receive(end, READY_SECONDS)
        for end in ends:
            end.send_bytes(b"go")
        times = [_receive(end, WORK_SECONDS).split() for end in ends]
    return max(float(ended) for _, ended in times) - min(float(began) for began, _ in times)


def create_file(path: Path, data: bytes) -> None:
    """Make a new file: open, write, close."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(file, memoryview(data))
    finally:
        os.close(file)


def write_all(file: int, data: memoryview) -> None:
    """Write all of `data`, in as many calls as the system takes it."""
    while data:
        data = data[os.write(file, data) :]


def _receive(end: Connection, seconds: float) -> str:
    if not end.poll(seconds):
        raise OSError(f"a process of the benchmark did not answer within {seconds:g} s")
    try:
        word, _, text = end.recv_bytes().decode(errors="replace").partition(" ")
    except EOFError:
        raise OSError("a process of the benchmark ended too early") from None
    if word == "error":
        raise OSError(text)
    return text


def _create_files(end: Connection, directory: Path, numbers: range, seed: int) -> None:
    """What each process does. The monotonic clock is the same in all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's business
    try:
        content = Content(seed)
        work = [(directory / f"{number:06d}", content.page(SMALL, number)) for number in numbers]
        end.send_bytes(b"ready")
        end.recv_bytes()
        began = time.monotonic()
        for path, data in work:
            create_file(path, data)
        end.send_bytes(f"done {began} {time.monotonic()}".encode())
    except OSError as error:
        end.send_bytes(f"error {error}".encode())
