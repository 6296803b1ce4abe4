"""Plays seeds in forked children, so many at once: what one leaves behind cannot touch the next."""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import sys
import traceback
from collections.abc import Callable, Generator, Iterable

from tests.sim.run import Verdict, sweep
from wire import methods
from wire.table import methods_of

REAL_SECONDS_MAX = 600
"""A child that takes longer hangs in real time: it prints where, and ends."""


def play_all(
    seeds: Iterable[int], play: Callable[[int], Verdict], jobs: int
) -> Generator[Verdict, None, None]:
    """Yield each seed's verdict as it comes."""
    sweep()
    for table in methods.__all__:
        methods_of(getattr(methods, table))  # compiled once, not by each child
    gc.freeze()  # what is here is shared with the children
    running: dict[int, tuple[int, int, list[bytes]]] = {}
    poll = select.poll()
    waiting = iter(seeds)
    try:
        while True:
            while len(running) < jobs and (seed := next(waiting, None)) is not None:
                reader, child = _fork(seed, play)
                running[reader] = (child, seed, [])
                poll.register(reader, select.POLLIN)
            if not running:
                return
            for reader, _ in poll.poll():
                child, seed, parts = running[reader]
                if chunk := os.read(reader, 1 << 20):
                    parts.append(chunk)
                    continue
                del running[reader]
                poll.unregister(reader)
                os.close(reader)
                os.waitpid(child, 0)
                yield Verdict.from_json(b"".join(parts)) if parts else Verdict.of_dead(seed)
    finally:
        for reader, (child, _, _) in running.items():
            os.close(reader)
            os.kill(child, 9)
            os.waitpid(child, 0)
        sweep()


def _fork(seed: int, play: Callable[[int], Verdict]) -> tuple[int, int]:
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writer)
        return reader, child
    try:
        os.close(reader)
        gc.disable()  # a life is short, and keeps nearly all it makes
        faulthandler.dump_traceback_later(REAL_SECONDS_MAX, exit=True)
        told = play(seed).to_json()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(told)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
