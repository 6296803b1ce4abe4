"""What programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools.output import check_writable, print_json
from wire.config import ConfigError


def test_names_that_are_no_utf_8_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"a\xff", b"a\xfe", "ä".encode()]
    print_json({"lost_paths": names})
    out = capsys.readouterr().out
    assert out.isascii()
    assert [os.fsencode(name) for name in json.loads(out)["lost_paths"]] == names


def test_a_file_that_is_to_be_written_later_is_not_made_before(tmp_path: Path) -> None:
    """A run that is ended would leave it empty: a history without calls keeps all promises."""
    (tmp_path / "old").write_text("earlier figures")
    for name in ("new", "old"):
        check_writable(tmp_path / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "earlier figures")]
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path / "no" / "file")
