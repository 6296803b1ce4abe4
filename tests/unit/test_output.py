"""What programs read."""

from __future__ import annotations

import json
import os

import pytest

from tools.output import print_json


def test_names_that_are_no_utf_8_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"a\xff", b"a\xfe", "ä".encode()]
    print_json({"lost_paths": names})
    out = capsys.readouterr().out
    assert out.isascii()
    assert [os.fsencode(name) for name in json.loads(out)["lost_paths"]] == names
