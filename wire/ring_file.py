"""The file of one ring, as its owner has it open. See wire.ring_head.

Decides nothing. One thread at a time.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from wire.errors import InternalError
from wire.ring_head import Head, pack_head

logger = logging.getLogger("wire.rings")


def own_files(memory: Path, begin: str) -> Iterator[Path]:
    """Yield the files of this user whose names begin so; anybody may make others beside them."""
    for path in sorted(memory.glob(f"{begin}*")):
        with suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                yield path
            else:
                logger.warning("%s is another user's, or no file: what may be in it is not taken in", path)


class RingFile:
    """The open file, and its head as it was written last.

    Args:
        path: is made if it is not there.
        head: what it says, or is to say once it is written.
        size: the file's, in bytes.
    """

    def __init__(self, path: Path, head: Head, size: int) -> None:
        """Open it. Raises OSError."""
        self.path, self.head = path, head
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            found = os.fstat(self._descriptor)
            if found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is another user's", os.fspath(path))
            self._allocate(size, is_new=not found.st_size)
        except OSError:
            os.close(self._descriptor)
            raise

    def _allocate(self, size: int, *, is_new: bool) -> None:
        """Take all its room, so that no write lacks any. Raises OSError, and leaves no new file then."""
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError:
            if is_new:
                self.path.unlink(missing_ok=True)
            raise

    @property
    def has_name(self) -> bool:
        """Whether a next life would find it: some login managers remove what users who left have there."""
        return os.fstat(self._descriptor).st_nlink > 0

    def write(self, head: Head) -> None:
        """Say something else. Raises OSError."""
        self.head = head
        os.pwrite(self._descriptor, pack_head(head), 0)

    def say(self, taken: int, room_until: int) -> None:
        """Have the writer know how far it may go on: if it does not, it makes calls some day."""
        try:
            self.write(self.head._replace(taken=taken, room_until=room_until))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error)

    def read(self, size: int, offset: int) -> bytes:
        """Return what is at some place. Raises InternalError."""
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise InternalError(f"{self.path} cannot be read, nor what is in it be known: {error}") from None

    def end(self) -> None:
        """Have nothing written any more, and remove the file.

        If it stays it is no harm: nobody is told its term again, and the next start removes it.
        """
        with suppress(OSError):
            self.write(self.head._replace(term=0))
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._descriptor)
