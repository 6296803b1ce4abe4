"""The two ways in which an evaluation reaches files: through mounts, and through the client library.

Either has two independent ends: one writes, the other one reads what it has never seen before, so that
no cache answers. Whatever fails raises OSError. One thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fusefs.connect import connect
from tools.cluster import LocalCluster
from wire.errors import QuorumfsError
from wire.messages import ROOT_INODE

READ_BYTES = 1 << 20


class MountAccess:
    """A cluster mounted twice, one mount for writing and one for reading."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._written, self._read = (cluster.directory / name for name in ("mnt-write", "mnt-read"))
        for mountpoint in (self._written, self._read):
            mountpoint.mkdir()
            cluster.mount(mountpoint)

    def write(self, name: str, content: bytes) -> None:
        """As `echo > name` does: open with O_TRUNC, write, close."""
        file = os.open(self._written / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(file, view) :]
        finally:
            os.close(file)

    def read(self, name: str) -> bytes:
        """As `cat name` does, on the mount that has not read it yet."""
        return _read_all(self._read / name)

    def inode(self, name: str) -> int:
        """Return the inode number, which is the same on every mount."""
        return (self._written / name).stat().st_ino

    def close(self) -> None:
        """Nothing: the mounts end with their cluster."""


class ClientAccess:
    """Two clients of the library, without a mount: one for writing and one for reading."""

    def __init__(self, cluster: LocalCluster) -> None:
        with ExitStack() as undo:
            self._written = undo.enter_context(connect(cluster.config, "evaluation, writing"))
            self._read = undo.enter_context(connect(cluster.config, "evaluation, reading"))
            self._clients = undo.pop_all()

    def write(self, name: str, content: bytes) -> None:
        """As `echo > name` does: open with O_TRUNC, write, flush, close."""
        with _os_errors():
            files = self._written.files
            _, handle = self._written.create(
                ROOT_INODE, name.encode(), 0o644, os.getuid(), os.getgid(), os.O_WRONLY | os.O_TRUNC
            )
            try:
                files.write(handle, 0, memoryview(content))
                files.flush(handle)
            finally:
                files.release(handle)

    def read(self, name: str) -> bytes:
        """As `cat name` does, by the client that has not read it yet."""
        with _os_errors():
            files = self._read.files
            handle, _ = files.open(self._read.names.resolve(name.encode()).ino, os.O_RDONLY)
            try:
                content = b""
                while part := files.read(handle, len(content), READ_BYTES):
                    content += bytes(part)
                return content
            finally:
                files.release(handle)

    def inode(self, name: str) -> int:
        """Return the inode number."""
        with _os_errors():
            return self._written.names.resolve(name.encode()).ino

    def close(self) -> None:
        """End both clients."""
        self._clients.close()


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise the library's errors as a mount would."""
    try:
        yield
    except QuorumfsError as error:
        raise OSError(error.errno, error.message) from error


def _read_all(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(file, READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)
