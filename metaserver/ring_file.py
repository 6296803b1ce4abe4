"""The file of one ring of changes, as the metadata server has it open. See wire.ring.

Decides nothing. One thread at a time.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

from wire.errors import InternalError
from wire.ring import RING_BYTES, SLOT_BYTES, SLOTS, Entry, Head, pack_head, slot_offset, unpack_entry

logger = logging.getLogger("metaserver")


class RingFile:
    """The open file of one session, and its head as it was written last."""

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head = path, head
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(self._descriptor).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it is another user's", os.fspath(path))
            os.posix_fallocate(self._descriptor, 0, RING_BYTES)  # no write of the mount lacks room
        except OSError:
            os.close(self._descriptor)
            raise

    def write(self, head: Head) -> None:
        self.head = head
        os.pwrite(self._descriptor, pack_head(head), 0)

    def say(self, taken: int, room_until: int) -> None:
        """Have the mount know how far it may go on: if it does not, changes take calls some day."""
        try:
            self.write(self.head._replace(taken=taken, room_until=room_until))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error)

    def first(self) -> Entry | None:
        """Return the change that is to be taken in next, if there is one. Raises InternalError."""
        return self._at(self.head.taken + 1)

    def waiting(self) -> list[Entry]:
        """Return all changes that are to be taken in, in their order. Raises InternalError."""
        found: list[Entry] = []
        while len(found) < SLOTS and (entry := self._at(self.head.taken + len(found) + 1)) is not None:
            found.append(entry)
        return found

    def _at(self, number: int) -> Entry | None:
        try:
            slot = os.pread(self._descriptor, SLOT_BYTES, slot_offset(number))
        except OSError as error:
            raise InternalError(
                f"{self.path} cannot be read, nor what was changed be known: {error}"
            ) from None
        return unpack_entry(slot, number, self.head.term)

    def end(self) -> None:
        """Have nothing written any more, and remove the file.

        If it stays it is no harm: no later grant tells its term, and the next start removes it.
        """
        with suppress(OSError):
            self.write(self.head._replace(term=0))
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._descriptor)
