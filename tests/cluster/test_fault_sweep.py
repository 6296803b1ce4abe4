"""The sweeps of faults themselves: they do what they say, and tell right from refused, wrong and lost."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fault_sweep import outcomes
from tests.fault_sweep.disks import DiskBench
from tests.fault_sweep.files import FAULTS, prepare, run_cell
from tests.fault_sweep.link import Rule
from tests.fault_sweep.messages import LinkedBench
from tests.fault_sweep.outcomes import Cell, render

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
    monkeypatch.setitem(outcomes.CONTENT, "changed", outcomes.OLD.encode())
    assert run_cell(tmp_path, "index.sqlite", "removed", 1, "read") == "wrong"


def test_messages_lost_doubled_and_late(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = LinkedBench(tmp_path, stack)
        every, first, front = bench.data, bench.data[:1], [bench.front]
        assert bench.try_rule(first, Rule("request lost", "get"), "update") in ("right", "")
        assert bench.try_rule(every, Rule("request lost", "put"), "update") == "refused"
        assert bench.try_rule(every, Rule("doubled", "put"), "update") == "right"
        assert bench.try_rule(every, Rule("late", "get", 0.4), "read") == "right"
        assert bench.try_rule([bench.meta], Rule("doubled", "commit"), "update") == "right"
        assert bench.try_rule(front, Rule("answer lost", "write_file"), "update") in ("right", "unsure")
        assert bench.try_rule(front, Rule("doubled", "read_block"), "read") == "right"
        bench.content["changed"] = b"told otherwise"
        assert bench.try_rule(front, Rule("late", "open", 0.1), "read") == "wrong"


def test_disks_that_fail(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = DiskBench(tmp_path, stack)
        assert bench.try_fault("read EIO", [1], "read") == "right"
        assert bench.try_fault("read EIO", [1, 2], "read") == "refused"
        assert bench.try_fault("write ENOSPC", [1], "update") == "refused"
        assert bench.try_fault("sync EIO", [1, 2, 3], "read") == "right"


def test_the_table_counts_its_cells() -> None:
    table = render({Cell("a", "flip", 1, "read"): "right", Cell("a", "flip", 2, "read"): "lost"})
    assert "| a | flip | right | lost |" in table
    assert "2 cells: right 1, refused 0, wrong 0, lost 1." in table
