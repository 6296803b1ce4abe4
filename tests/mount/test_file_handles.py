"""Handles of name_to_handle_at(2), as servers of NFS keep them: they outlive what is cached."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import SMALL
from tests.twins import AT_FDCWD
from tools.cluster import LocalCluster

LIBRARY = ctypes.CDLL(None, use_errno=True)
HANDLE_BYTES = 128


class Handle(ctypes.Structure):
    """The kernel's struct file_handle."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("handle", ctypes.c_ubyte * HANDLE_BYTES),
    )


class Mounted:
    """A cluster with one mount, which can be made anew."""

    def __init__(self, cluster: LocalCluster, place: Path) -> None:
        self.cluster, self.place = cluster, place
        self._name = cluster.mount(place)

    def forget(self) -> None:
        """Have the kernel forget all inodes that nobody uses."""
        Path("/proc/sys/vm/drop_caches").write_text("2\n")

    def mount_anew(self) -> None:
        self.cluster.unmount(self._name)
        self._name = self.cluster.mount(self.place)

    def open(self, handle: Handle, flags: int = os.O_RDONLY) -> int:
        root = os.open(self.place, os.O_RDONLY)
        try:
            file = LIBRARY.open_by_handle_at(root, ctypes.byref(handle), flags)
            if file < 0:
                raise OSError(ctypes.get_errno(), "open_by_handle_at")
            return int(file)
        finally:
            os.close(root)

    def read(self, handle: Handle) -> bytes:
        with os.fdopen(self.open(handle), "rb") as file:
            return file.read()


def handle_of(path: Path) -> Handle:
    handle, mount = Handle(HANDLE_BYTES), ctypes.c_int()
    words = AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0
    if LIBRARY.name_to_handle_at(*words) < 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    base = tmp_path_factory.mktemp("handles")
    with LocalCluster.create(base / "cluster", **SMALL) as cluster:
        cluster.start()
        (base / "mnt").mkdir()
        yield Mounted(cluster, base / "mnt")


@pytest.fixture
def file(mounted: Mounted, request: pytest.FixtureRequest) -> Path:
    """A file below two directories of the test's own."""
    made = mounted.place / request.node.name / "inner" / "a.txt"
    made.parent.mkdir(parents=True)
    made.write_text("1234\n")
    return made


def test_a_file_is_found_that_the_kernel_has_forgotten(mounted: Mounted, file: Path) -> None:
    handle = handle_of(file)
    mounted.forget()
    assert mounted.read(handle) == b"1234\n"
    file.rename(file.with_name("b.txt"))
    mounted.forget()
    assert mounted.read(handle) == b"1234\n"


def test_a_mount_that_is_made_anew_knows_it(mounted: Mounted, file: Path) -> None:
    handle, directory = handle_of(file), handle_of(file.parent)
    mounted.mount_anew()
    assert mounted.read(handle) == b"1234\n"
    opened = mounted.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(opened) == ["a.txt"]  # noqa: PTH208
        assert Path(f"/proc/self/fd/{opened}").readlink() == file.parent
        above = os.stat("..", dir_fd=opened)
        assert above.st_ino == file.parents[1].stat().st_ino
    finally:
        os.close(opened)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_was_removed_is_not_found_nor_what_has_its_name(mounted: Mounted, file: Path, kind: str) -> None:
    path = file if kind == "file" else file.parent
    handle = handle_of(path)
    file.unlink()
    if kind == "directory":
        path.rmdir()
        path.mkdir()
    file.write_text("another\n")
    mounted.forget()
    with pytest.raises(OSError, match="open_by_handle_at") as refused:
        mounted.open(handle)
    assert refused.value.errno == errno.ESTALE
