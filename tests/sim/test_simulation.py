"""The simulation itself: it repeats exactly, survives a hundred seeds, and finds a bug that is put in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )


def hash_of(timeline: str) -> str:
    return timeline.split("events ")[-1].split()[0]


def test_a_seed_is_played_the_same_again() -> None:
    first, second = simulate("--replay", "12"), simulate("--replay", "12")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr
    assert hash_of(first.stdout) == hash_of(second.stdout)
    assert first.stdout.splitlines()[:-1] == second.stdout.splitlines()[:-1]


@pytest.mark.timeout(600)
def test_seeds() -> None:
    done = simulate("--seeds", "60", "--first", os.environ.get("QUORUMFS_SIM_FIRST", "1"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_bug_that_is_put_in_is_found() -> None:
    """The plainest slip there is."""
    found = simulate("--mutants", "vote counts corrupt", "--seeds", "20")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "found by the" in found.stdout
