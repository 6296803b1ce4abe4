"""Directories of 100,000 entries: complete while they change, each name once, and how long it takes."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.work import run

ENTRIES = 100_000


def fill(place: Path, first: int, end: int) -> None:
    for number in range(first, end):
        os.mknod(place / f"stays-{number:06}")


def change(place: Path, stop: threading.Event) -> int:
    """Make, rename and remove other names until told to stop; return how often."""
    number = 0
    while not stop.is_set():
        number += 1
        name = place / f"{'azs'[number % 3]}-comes-{number}"
        os.mknod(name)
        name.rename(place / f"goes-{number}")
        (place / f"goes-{number}").unlink()
    return number


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_entries_while_they_change(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step, began = ENTRIES // 8, time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for made in [pool.submit(fill, here, first, first + step) for first in range(0, ENTRIES, step)]:
            made.result()
    filled = time.monotonic() - began
    wanted = {f"stays-{number:06}" for number in range(ENTRIES)}
    stop, times = threading.Event(), []
    with ThreadPoolExecutor(2) as pool:
        changers = [pool.submit(change, here, stop)]
        try:
            for _ in range(5):
                began = time.monotonic()
                seen = Counter(entry.name for entry in os.scandir(here))
                times.append(time.monotonic() - began)
                assert max(seen.values()) == 1
                assert wanted <= seen.keys()
        finally:
            stop.set()
        changes = sum(changer.result() for changer in changers)
    assert changes > 0
    began = time.monotonic()
    assert int(run(here, "ls | wc -l", seconds=300)) == ENTRIES
    listed = time.monotonic() - began
    with capsys.disabled():
        print(
            f"\n{ENTRIES} entries: made in {filled:.0f} s by 8 threads, listed in {min(times):.1f} to "
            f"{max(times):.1f} s during {changes} changes, ls in {listed:.1f} s"
        )
