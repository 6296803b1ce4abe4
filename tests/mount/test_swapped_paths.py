"""What a path leads to when another mount has just put another directory or link on the way to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.mount.conftest import two_mounts
from tests.twins import AT_FDCWD, LIBC, checked

RENAME_EXCHANGE = 2
NUMBERS = count()

CALLS: dict[str, Callable[[Path], object]] = {
    "open": lambda place: (place / "f").read_text(),
    "open a name that is new": lambda place: (place / "new").read_text(),
    "attributes of a name that is new": lambda place: (place / "new").stat() and "new",
    "open by way of ..": lambda place: (place / "s" / ".." / "f").read_text(),
    "list": lambda place: "new" if "new" in listing(place) else "old",
    "unlink": lambda place: (place / "f").unlink(),
    "rmdir": lambda place: (place / "s").rmdir(),
    "mkdir": lambda place: (place / "made").mkdir(),
    "create": lambda place: (place / "made").touch(),
    "rename": lambda place: (place / "f").rename(place / "renamed") and None,
    "rename to elsewhere": lambda place: (place / "f").rename(place.parent / "renamed") and None,
    "link": lambda place: (place / "linked").hardlink_to(place / "f"),
    "truncate": lambda place: os.truncate(place / "f", 1),
    "chmod": lambda place: (place / "f").chmod(0o600),
    "set an attribute": lambda place: os.setxattr(place / "f", "user.name", b"value"),
}


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two mounts of one cluster."""
    base = tmp_path_factory.mktemp("swapped")
    with two_mounts(base) as places:
        yield places


def listing(place: Path) -> list[str]:
    return sorted(os.listdir(place))  # noqa: PTH208


def state(place: Path) -> dict[str, tuple[int, int, list[str]]]:
    """Return the modes, sizes and extended attributes of what is in a directory."""
    found = {path.name: path.stat() for path in place.iterdir()}
    return {
        name: (status.st_mode, status.st_size, os.listxattr(place / name)) for name, status in found.items()
    }


def exchange(one: Path, other: Path) -> None:
    checked(LIBC.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE))


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("kind", ["directory", "link"])
@pytest.mark.parametrize("older", ["kept", "removed"])
def test_it_leads_to_the_newer_one(mounts: tuple[Path, Path], older: str, kind: str, what: str) -> None:
    number = next(NUMBERS)
    here, there = (place / f"{number}" for place in mounts)
    for version in ("old", "new"):
        (here / version / "s").mkdir(parents=True)
        (here / version / "f").write_text(version)
    (here / "new" / "new").write_text("new")
    if kind == "link":
        (here / "current").symlink_to("old")
        (here / "next").symlink_to("new")
    else:
        (here / "old").rename(here / "current")
        (here / "new").rename(here / "next")
    for name in ("f", "s"):
        (there / "current" / name).stat()
    before = state(here / "current")
    if older == "removed" and kind == "link":
        (here / "next").rename(here / "current")
    else:
        exchange(here / "next", here / "current")
        if older == "removed":
            shutil.rmtree(here / "next")
    assert CALLS[what](there / "current") in (None, "new")
    if older == "kept":
        assert state(here / "next") == before


@pytest.mark.parametrize("what", ["truncate", "chmod", "set an attribute"])
def test_a_file_that_was_replaced_while_it_is_open_is_not_changed_by_its_name(
    mounts: tuple[Path, Path], what: str
) -> None:
    name = f"{next(NUMBERS)}"
    here, there = (place / name for place in mounts)
    here.mkdir()
    for version in ("f", "newer"):
        (here / version).write_text(version)
    with (there / "f").open() as old:
        (there / "f").stat()
        (here / "f").rename(here / "older")
        (here / "newer").rename(here / "f")
        before = state(here)
        CALLS[what](there)
        after = state(here)
        assert old.read() == "f"
    assert after["older"] == before["older"]
    assert after["f"] != before["f"]


@pytest.mark.parametrize("what", ["getxattr", "listxattr"])
def test_the_attributes_of_a_file_that_was_replaced_can_be_read(mounts: tuple[Path, Path], what: str) -> None:
    name = f"{next(NUMBERS)}"
    here, there = (place / name for place in mounts)
    here.mkdir()
    for version in ("f", "newer"):
        (here / version).touch()
        os.setxattr(here / version, f"user.{version}", b"value")
    (there / "f").stat()
    (here / "newer").rename(here / "f")
    if what == "getxattr":
        assert os.getxattr(there / "f", "user.newer") == b"value"
    else:
        assert os.listxattr(there / "f") == ["user.newer"]


def test_a_file_in_the_place_of_a_link_is_opened_by_who_follows_none(mounts: tuple[Path, Path]) -> None:
    name = f"{next(NUMBERS)}"
    here, there = (place / name for place in mounts)
    here.mkdir()
    (here / "f").symlink_to("elsewhere")
    (here / "newer").write_text("new")
    assert (there / "f").is_symlink()
    (here / "newer").rename(here / "f")
    found = os.open(there / "f", os.O_RDONLY | os.O_NOFOLLOW)
    assert os.read(found, 10) == b"new"
    os.close(found)
