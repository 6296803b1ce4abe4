"""What an older state of the metadata's disk is held against."""

from __future__ import annotations

from pathlib import Path

from tests.sim.put_backs import milestone_of
from tests.unit.metaserver.harness import Harness


def test_the_milestone_of_a_database_is_read_from_its_log_too_and_its_files_stay(tmp_path: Path) -> None:
    meta = Harness(tmp_path)
    assert milestone_of(meta.path.parent) == 0
    meta.store.change(lambda: meta.store.execute("INSERT INTO counters VALUES ('milestone', 7)"))
    before = {file.name: file.read_bytes() for file in meta.path.parent.iterdir() if "-shm" not in file.name}
    assert milestone_of(meta.path.parent) == 7
    assert before == {name: (meta.path.parent / name).read_bytes() for name in before}
    meta.close()
