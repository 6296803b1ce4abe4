"""A file that does nothing but take room, so that there is some when something else has filled the disk.

It lies beside the database. To delete a row SQLite needs room for its log, and so does a start. It must not
decide when it is given up: `Store` does, which meets the end of the disk, and `Room` has it made again.
Threading: any thread, one at a time.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

NAME = "reserve"

logger = logging.getLogger("metaserver")


class Reserve:
    """The file beside one database."""

    def __init__(self, database: Path) -> None:
        """Name it; nothing is made.

        Args:
            database: its file.
        """
        self._file = database.with_name(NAME)

    def keep(self, size: int) -> None:
        """Make it, of so many bytes, if it is not there; where the disk does not let us, there is none."""
        try:
            if self._file.stat().st_size >= size:
                return
        except FileNotFoundError:
            pass
        try:
            with self._file.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                os.fsync(file.fileno())  # else a power loss may leave the name of an empty file
        except OSError as error:
            self._file.unlink(missing_ok=True)
            logger.warning("no room was reserved on the disk: %s", error)

    def release(self) -> bool:
        """Give its room up; return whether there was any."""
        if not self._file.exists():
            return False
        logger.warning("the disk is full: the reserve is given up")
        self._file.unlink()
        return True
