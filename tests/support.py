"""What tests of several tiers share. No fixed sleeps: conditions are awaited with a deadline."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tools.processes import interruptible

ROOT = Path(__file__).parents[1]

T = TypeVar("T")

LOOK_SECONDS = 0.02


def run_as_program(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns. A signal that ends it has it stop what it started, as Ctrl-C does."""
    try:
        with interruptible():
            sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def take_seed() -> int:
    """Return the seed of a random test: QUORUMFS_SEED if that is set, else a new one. It is printed."""
    seed = int(os.environ.get("QUORUMFS_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"QUORUMFS_SEED={seed}")
    return seed


def wait_until(condition: Callable[[], T], deadline_seconds: float, what: str) -> T:
    """Return the first true value of `condition`, asked again and again.

    Raises:
        AssertionError: it was still false at the deadline; the message has `what` and the last value.
    """
    end = time.monotonic() + deadline_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_seconds:g} s: {what} (last value: {value!r})")
        time.sleep(LOOK_SECONDS)


def run_command(
    directory: Path, *words: str, stdin: str | None = None, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `quorumfs WORDS` as a process of its own in a directory, from this source tree."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("QUORUMFS_STATE", None)
    return subprocess.run(
        [sys.executable, "-P", "-m", "tools.cli", *words],
        cwd=directory,
        env=environment,
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def is_scrubbed(status: dict[str, Any]) -> bool:
    """Tell by a mediator's status whether each data server has been scrubbed once, and none is being now."""
    scrubs = [server["scrub"] for server in status["servers"]]
    return all(scrub is not None and scrub["state"] == "done" for scrub in scrubs)
