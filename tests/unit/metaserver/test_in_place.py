"""A database or its log removed or replaced under a running server: no change is taken, nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metaserver.log import Checkpointer
from metaserver.room import LOOK_CALLS
from tests.unit.metaserver.harness import Harness
from wire.errors import InternalError

Harm = Callable[[Path], None]


class Running(Harness):
    """A server whose log is kept short; at its end, its files may not be there to be checked."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.checkpointer = Checkpointer(self.store)

    def look(self) -> None:
        """Do what is done ten times a second."""
        self.wait(self.checkpointer.run_once())

    def file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def stop(self) -> None:
        self.checkpointer.close()
        super().stop()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    shutil.copy(file, file.with_name("other"))
    file.with_name("other").rename(file)


def move_away(file: Path) -> None:
    file.rename(file.with_name("moved"))


@pytest.mark.parametrize("harm", [remove, replace, move_away])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_no_change_is_taken_without_the_files(running: Running, suffix: str, harm: Harm) -> None:
    running.create(1, b"before")
    file = running.file(suffix)
    harm(file)
    running.look()
    with pytest.raises(InternalError, match=str(file)):
        running.create(1, b"after")
    assert str(file) in running.service.status()["displaced"]
    assert running.service.resolve(1, [b"before"]), "what is there is read as before"


def test_a_directory_that_is_removed_is_told(running: Running) -> None:
    running.create(1, b"before")
    shutil.rmtree(running.path.parent)
    running.look()
    for _ in range(LOOK_CALLS):
        with pytest.raises(InternalError, match=str(running.path)):
            running.create(1, b"after")
    assert str(running.path) in running.service.status()["displaced"]
    assert running.service.resolve(1, [b"before"])


@pytest.mark.parametrize("harm", [remove, replace, move_away])
def test_no_copy_is_made_of_another_database(running: Running, harm: Harm) -> None:
    """It would pass for the newest copy, and older ones be deleted."""
    harm(running.file(""))
    for begin in (running.service.begin_copy, running.service.begin_check):
        with pytest.raises(InternalError, match=r"removed|another"):
            begin()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_what_is_moved_back_is_used_again(running: Running, suffix: str) -> None:
    running.create(1, b"before")
    file, aside = running.file(suffix), running.path.with_name("aside")
    file.rename(aside)
    running.look()
    with pytest.raises(InternalError):
        running.create(1, b"meanwhile")
    aside.rename(file)
    running.look()
    running.create(1, b"after")
    assert running.service.status()["displaced"] == ""
    running.stop()
    running.start()
    running.checkpointer = Checkpointer(running.store)
    assert running.service.resolve(1, [b"before"]) and running.service.resolve(1, [b"after"])
    assert running.findings() == []


def test_nothing_is_lost_with_the_log(running: Running, tmp_path: Path) -> None:
    """Even if the server is killed then: all that the log had is in the database at once."""
    running.create(1, b"before")
    running.wait(running.log.sync())
    running.file("-wal").unlink()
    running.look()
    killed = tmp_path / "killed"
    killed.mkdir()
    for suffix in ("", "-sums", "-mark"):
        shutil.copy(running.file(suffix), killed)
    again = Harness(killed)
    assert again.service.resolve(1, [b"before"])
    again.close()


def test_a_database_that_was_removed_is_whole_until_the_server_ends(running: Running, tmp_path: Path) -> None:
    """It can be copied from what the process has open, as it is said."""
    running.create(1, b"before")
    running.file("").unlink()
    running.look()
    saved = tmp_path / "saved"
    saved.mkdir()
    shutil.copy(find_open(f"{running.path} (deleted)"), saved / running.path.name)
    again = Harness(saved)
    assert again.service.resolve(1, [b"before"])
    again.close()


def find_open(name: str) -> Path:
    """Return the entry of /proc that stands for an open file."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one of the directory itself is gone by now
            if str(entry.readlink()) == name:
                return entry
    raise AssertionError(f"{name} is not open")
