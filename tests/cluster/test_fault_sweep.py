"""The sweep of faults itself: that it damages what it says, and tells right from refused, wrong and lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fault_sweep
from tests.fault_sweep import FAULTS, prepare, render, run_cell

pytestmark = pytest.mark.damages("that is what it is about")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_changes_the_file(tmp_path: Path, fault: str) -> None:
    path, older, other = (tmp_path / name for name in ("path", "older", "other"))
    path.write_bytes(b"x" * 10_000)
    older.write_bytes(b"o" * 10_000)
    other.write_bytes(b"t" * 10_000)
    FAULTS[fault](path, older, other)
    assert not path.is_file() or path.read_bytes() != b"x" * 10_000


def test_some_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    assert run_cell(tmp_path, "segments/*.seg", "flip", 1, "read") == "right"
    assert run_cell(tmp_path, "segments/*.seg", "emptied", 3, "read") == "refused"
    # Told that other bytes were committed, it calls what it reads wrong.
    monkeypatch.setitem(fault_sweep.CONTENT, "changed", fault_sweep.OLD.encode())
    assert run_cell(tmp_path, "index.sqlite", "removed", 1, "read") == "wrong"


def test_the_table_counts_its_cells() -> None:
    table = render({("a", "flip", 1, "read"): "right", ("a", "flip", 2, "read"): "lost"})
    assert "| a | flip | right | lost |  |" in table
    assert "2 cells: right 1, refused 0, wrong 0, lost 1." in table
