"""A name that is given to a whole file or to none, on disks of all kinds."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from tools import new_name
from tools.new_name import give_name


def refuse(*_: object) -> NoReturn:
    raise OSError(errno.EINVAL, "not offered")


@pytest.fixture(params=[(), ("_rename",), ("_rename", "_link")], ids=["rename", "link", "claim"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file on a disk that lacks some ways."""
    for lacking in request.param:
        monkeypatch.setattr(new_name, lacking, refuse)
    made = tmp_path / "file.partial"
    made.write_bytes(b"whole")
    return made


def test_a_file_gets_its_name(file: Path) -> None:
    name = file.with_name("name")
    give_name(file, name)
    assert name.read_bytes() == b"whole"
    assert list(file.parent.iterdir()) == [name]


def test_a_name_that_is_taken_stays_what_it_is(file: Path) -> None:
    name = file.with_name("name")
    name.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        give_name(file, name)
    assert (file.read_bytes(), name.read_bytes()) == (b"whole", b"another's")


def test_what_is_interrupted_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup claimed its name by one, just before the rename."""
    file, name = tmp_path / "file.partial", tmp_path / "name"
    file.write_bytes(b"whole")

    def kill(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(new_name, "_rename", refuse)
    monkeypatch.setattr(Path, "rename", kill)
    monkeypatch.setattr(Path, "unlink", kill)
    with pytest.raises(KeyboardInterrupt):
        give_name(file, name)
    assert name.read_bytes() == b"whole"


def test_other_errors_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        give_name(tmp_path / "none", tmp_path / "name")
    assert not list(tmp_path.iterdir())
