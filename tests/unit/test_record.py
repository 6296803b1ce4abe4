"""The command record: what cannot be written is refused before; of a run that is ended nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import ROOT, wait_until
from tools.cli import main


def test_an_output_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", "--output", str(tmp_path / "no" / "file"), "--seconds", "5", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("second", ["not-mounted", "nowhere"])
def test_directories_of_several_file_systems_are_refused(
    tmp_path: Path, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All calls in the second one would fail, which breaks no promise."""
    for name in ("mnt", "not-mounted"):
        (tmp_path / name).mkdir()
    words = ["--seconds", "0.1", "--clients", "2", str(tmp_path / "mnt"), str(tmp_path / second)]
    assert main(["record", "--output", str(tmp_path / "out"), *words]) == 2
    assert "name directories of one file system" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mnt", "not-mounted"]


@pytest.mark.usefixtures("heeded_endings")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-P", "-m", "tools.cli", "record", "--output", str(tmp_path / "out")]
    (tmp_path / "mnt").mkdir()
    with subprocess.Popen(
        [*command, "--seconds", "30", "--clients", "2", str(tmp_path / "mnt")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as recording:
        try:
            wait_until(lambda: len(list(tmp_path.glob("mnt/*/*"))) > 5, 30, "both clients are at work")
            if number == signal.SIGINT:
                os.killpg(recording.pid, number)  # as a terminal does
            else:
                recording.send_signal(number)
            assert recording.stderr is not None
            assert (recording.wait(20), recording.stderr.read()) == (128 + signal.SIGINT, b"")
            assert [path.name for path in tmp_path.rglob("*")] == ["mnt"]
            wait_until(lambda: not in_group(recording.pid), 10, "no process is left")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(recording.pid, signal.SIGKILL)


def in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
