"""Programs of the tests that are ended before their time."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support import ROOT

PROGRAM = """
import time
from tests.support import run_as_program

def main():
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("stopped", flush=True)

run_as_program(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_has_a_program_stop_what_it_started(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        program.send_signal(number)
        assert program.communicate(timeout=20) == ("stopped\n", "")
        assert program.returncode == 130


def test_what_a_program_returns_is_its_exit_status() -> None:
    command = [sys.executable, "-c", "from tests.support import run_as_program\nrun_as_program(lambda: 3)"]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=20).returncode == 3
