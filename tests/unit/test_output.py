"""What programs read."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tools.output import FittingTable, check_writable, print_json
from wire.config import ConfigError


def test_names_that_are_no_utf_8_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"a\xff", b"a\xfe", "ä".encode()]
    print_json({"lost_paths": names})
    out = capsys.readouterr().out
    assert out.isascii()
    assert [os.fsencode(name) for name in json.loads(out)["lost_paths"]] == names


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (30, "data-1  1234  2026-11-22 19:19"),
        (29, "data-1  2026-11-22 19:19"),
        (24, "data-1  2026-11-22 19:19"),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns_whole(width: int, line: str) -> None:
    rows = [["data-1", "1234", "2026-11-22 19:19"]]
    shown = StringIO()
    Console(file=shown, width=width).print(FittingTable(["name", "pid", "seen"], rows, ["pid"]))
    assert shown.getvalue().splitlines()[1].rstrip() == line


def test_a_terminal_that_is_too_narrow_for_all_folds_what_is_left() -> None:
    shown = StringIO()
    Console(file=shown, width=8).print(FittingTable(["name", "pid"], [["long names", "1"]], ["pid"]))
    assert [line.strip() for line in shown.getvalue().splitlines()] == ["name", "long", "names"]


def test_a_file_that_is_to_be_written_later_is_not_made_before(tmp_path: Path) -> None:
    """A run that is ended would leave it empty: a history without calls keeps all promises."""
    (tmp_path / "old").write_text("earlier figures")
    for name in ("new", "old"):
        check_writable(tmp_path / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "earlier figures")]
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path / "no" / "file")
