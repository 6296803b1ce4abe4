"""The file that only takes room."""

from __future__ import annotations

from pathlib import Path

from metaserver.reserve import NAME, Reserve

SIZE = 64 * 1024


def test_it_is_made_once_and_given_up_once(tmp_path: Path) -> None:
    reserve, file = Reserve(tmp_path / "meta.sqlite"), tmp_path / NAME
    reserve.keep(SIZE)
    made = file.stat()
    assert made.st_size == SIZE and made.st_blocks * 512 >= SIZE
    reserve.keep(SIZE)
    assert file.stat().st_mtime_ns == made.st_mtime_ns
    assert reserve.release() and not file.exists()
    assert not reserve.release()


def test_one_that_a_power_loss_left_empty_is_made_anew(tmp_path: Path) -> None:
    reserve, file = Reserve(tmp_path / "meta.sqlite"), tmp_path / NAME
    file.touch()
    reserve.keep(SIZE)
    assert file.stat().st_blocks * 512 >= SIZE
