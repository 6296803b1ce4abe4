"""Which names of directories the kernel is told to forget, and how long it is waited for."""

from __future__ import annotations

import threading

import pytest

from fusefs.operations import moved
from fusefs.operations.moved import MovedDirectories

HERE, THERE = 2, 3


class Kernel:
    """Notes what it is to forget; does so at once unless it is `busy`."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bytes]] = []
        self.busy = False
        self.waits = 0
        self.directories = MovedDirectories(self._forget)
        self.directories.pass_on = self._count

    def _forget(self, parent: int, name: bytes) -> threading.Event:
        self.told.append((parent, name))
        done = threading.Event()
        if not self.busy:
            done.set()
        return done

    def _count(self) -> None:
        self.waits += 1


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_the_old_name_of_a_directory_that_is_found_elsewhere(kernel: Kernel) -> None:
    for parent, name in ((HERE, b"d"), (HERE, b"d"), (THERE, b"e"), (THERE, b"e")):
        kernel.directories.found(10, parent, name)
    assert kernel.told == [(HERE, b"d")]


def test_a_name_that_is_another_directorys_by_now_is_kept(kernel: Kernel) -> None:
    kernel.directories.found(10, HERE, b"d")
    kernel.directories.found(11, HERE, b"d")
    kernel.directories.found(10, THERE, b"d")
    assert kernel.told == []


def test_what_this_mount_has_moved_the_kernel_knows_by_its_new_name(kernel: Kernel) -> None:
    kernel.directories.found(10, HERE, b"d")
    kernel.directories.found(11, THERE, b"replaced")
    kernel.directories.renamed((HERE, b"d"), (THERE, b"replaced"), exchanged=False)
    kernel.directories.found(10, THERE, b"replaced")
    assert kernel.told == []
    kernel.directories.found(10, HERE, b"d")
    assert kernel.told == [(THERE, b"replaced")]


def test_what_this_mount_has_exchanged(kernel: Kernel) -> None:
    kernel.directories.found(10, HERE, b"d")
    kernel.directories.found(11, THERE, b"e")
    kernel.directories.renamed((HERE, b"d"), (THERE, b"e"), exchanged=True)
    kernel.directories.found(10, THERE, b"e")
    kernel.directories.found(11, HERE, b"d")
    assert kernel.told == []


def test_a_file_that_takes_the_place_of_a_directory(kernel: Kernel) -> None:
    kernel.directories.found(10, THERE, b"e")
    kernel.directories.renamed((HERE, b"file"), (THERE, b"e"), exchanged=False)
    kernel.directories.found(10, HERE, b"d")
    assert kernel.told == []


def test_a_kernel_that_cannot_forget_before_it_is_answered(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for at its first and its second try, and by nobody else."""
    monkeypatch.setattr(moved, "FORGET_SECONDS", 0.001)
    kernel.directories.found(10, HERE, b"d")
    kernel.busy = True
    for _ in range(4):
        kernel.directories.found(10, THERE, b"d")
    assert kernel.told == [(HERE, b"d")]
    assert kernel.waits == 2


def test_only_so_many_are_known(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "MOST_PLACES", 2)
    for ino in (10, 11, 12):
        kernel.directories.found(ino, HERE, b"%d" % ino)
    for ino in (12, 11, 10):
        kernel.directories.found(ino, THERE, b"%d" % ino)
    assert kernel.told == [(HERE, b"12"), (HERE, b"11")]
