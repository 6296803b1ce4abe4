"""A small evaluation on real servers: as the model says, and, with a broken part, told and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tools.measure
from mediator.vote import predict_read
from tests.conftest import UNEXPECTED
from tests.support import wait_until
from tools.access import ClientAccess
from tools.cli import main
from tools.cluster import LocalCluster
from tools.records import Cell, Outcome, loads, plan_cells
from wire.quorum import Quorum

ROOT = Path(__file__).parent.parent.parent
SMALL = ("evaluate", "--no-mount", "--servers", "3", "--seed", "5")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *words],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("rpc", ["msgpack", pytest.param("xml", marks=pytest.mark.long)])
def test_a_small_evaluation_is_as_the_model_says(tmp_path: Path, rpc: str) -> None:
    records_file, page, kept = tmp_path / "records.json", tmp_path / "page.html", tmp_path / "kept"
    files = ("--json", str(records_file), "--html", str(page), "--keep", str(kept))
    done = run(*SMALL, "--rpc", rpc, *files)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "0 wrong, 0 stale; 0 differ from the model" in done.stdout
    assert "Every cell is as the model says" in page.read_text()
    records = loads(records_file.read_text())
    assert [record.cell for record in records] == plan_cells(3)
    assert all(record.rpc == rpc and record.seed == 5 and record.evidence for record in records)
    assert all(len(record.faults) == record.crashed + record.corrupt for record in records)
    logs = [*kept.glob("*/logs/*.log")]
    assert len(logs) == 5 and not [log for log in logs if UNEXPECTED.search(log.read_text(errors="replace"))]


def test_records_that_cannot_be_written_are_shown_all_the_same() -> None:
    one = ("--no-mount", "--servers", "1", "--json", "/dev/full")
    done = run("evaluate", *one)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
    assert "0 wrong, 0 stale; 0 differ from the model" in done.stdout


def test_a_model_that_differs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that believes a vote of one more than there is: its cell differs, and no other."""

    def too_hopeful(quorum: Quorum, cell: Cell) -> Outcome:
        if cell == Cell("read", 2, 0):
            return Outcome(predict_read(quorum, crashed=1))
        return real(quorum, cell)

    real = tools.measure.predict
    monkeypatch.setattr(tools.measure, "predict", too_hopeful)
    file = tmp_path / "records.json"
    assert main([*SMALL, "--json", str(file)]) == 1
    out = capsys.readouterr().out
    assert "refused, model: right" in out and "1 differ from the model" in out
    assert [record.cell for record in loads(file.read_text()) if record.flagged] == [Cell("read", 2, 0)]


@pytest.mark.parametrize(
    ("spoil", "outcome"),
    [(lambda data: data[:-1] + bytes([data[-1] ^ 1]), Outcome.WRONG), (lambda data: b"", Outcome.WRONG)],
    ids=["one-bit", "empty"],
)
def test_wrong_bytes_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[bytes], bytes],
    outcome: Outcome,
) -> None:
    real = ClientAccess.read
    monkeypatch.setattr(ClientAccess, "read", lambda self, name: spoil(real(self, name)))
    assert main(list(SMALL)) == 1
    out = capsys.readouterr().out
    assert f"{outcome}, model: right" in out and "DIFFERS" in out


def test_stale_bytes_and_lost_writes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client that forgets every second write of a file, and says that it was done."""
    writes: dict[str, int] = {}
    real = ClientAccess.write

    def forgetful(self: ClientAccess, name: str, content: bytes) -> None:
        writes[name] = writes.get(name, 0) + 1
        if writes[name] == 1:
            real(self, name, content)

    monkeypatch.setattr(ClientAccess, "write", forgetful)
    file = tmp_path / "records.json"
    assert main([*SMALL, "--json", str(file)]) == 1
    assert "stale, model: right" in capsys.readouterr().out
    records = loads(file.read_text())
    stale = {record.cell for record in records if record.outcome == Outcome.STALE}
    assert {Cell("read", 0, 0), Cell("read", 1, 0), Cell("write", 0, 0)} <= stale
    assert not [record for record in records if record.outcome == Outcome.RIGHT]


def test_a_read_from_a_cache_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents: dict[str, bytes] = {}
    real = ClientAccess.write

    def remembering(self: ClientAccess, name: str, content: bytes) -> None:
        real(self, name, content)
        contents[name] = content

    monkeypatch.setattr(ClientAccess, "write", remembering)
    monkeypatch.setattr(ClientAccess, "read", lambda self, name: contents[name])
    assert main(list(SMALL)) == 1
    assert "answered without a vote" in capsys.readouterr().err


def test_a_terminated_evaluation_stops_what_it_started_and_tells_what_it_measured(tmp_path: Path) -> None:
    kept, file = tmp_path / "kept", tmp_path / "records.json"
    evaluation = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", *SMALL, "--keep", str(kept), "--json", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        place = kept / "N3-Qr2-Qw3"
        wait_until((place / "run" / "mediator.json").exists, 30, "the cluster is started")
        cluster = LocalCluster.open(place)
        wait_until(lambda: all(state.state == "running" for state in cluster.status()), 30, "it runs")
        evaluation.terminate()
        _, err = evaluation.communicate(timeout=60)
    finally:
        evaluation.kill()
        evaluation.wait()
    assert (evaluation.returncode, err) == (130, "")
    assert {state.state for state in cluster.status()} == {"down"}
    assert len(loads(file.read_text())) < len(plan_cells(3))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--read-quorum", "1", "--write-quorum", "4"), "does not exceed N=5"),
        (("--servers", "3", "--write-quorum", "9"), "does not fit N=3"),
        (("--servers", "three"), "invalid int value"),
        (("--json", "/nowhere/records.json"), "cannot be written"),
        (("--html", "/nowhere/page.html"), "cannot be written"),
    ],
)
def test_bad_options_are_one_line(words: tuple[str, ...], reason: str) -> None:
    done = run("evaluate", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert reason in done.stderr and done.stderr.count("\n") == 1, done.stderr
