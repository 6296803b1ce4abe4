"""Whether the files that a database has open are still those of their names: they may be removed or replaced.

SQLite goes on with what it has open, and all that is acknowledged is gone when the process ends. So no change
is taken then. What is open is whole, and is read from as before; a file that is moved back is used again. It
decides nothing else, and changes nothing. In the event loop's thread only; a look takes some microseconds.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from wire.errors import InternalError

logger = logging.getLogger("metaserver")


class FilesInPlace:
    """The database file and the log of one open database.

    Attributes:
        displaced: which file is not in its place, and what to do; "" while all are.
    """

    def __init__(self, database: Path) -> None:
        """Remember which files they are: they are open, and something was written. Raises OSError."""
        files = (database, database.with_name(database.name + "-wal"))
        self._opened = {file: os.stat(file) for file in files}  # noqa: PTH116  ten times a second
        self.displaced = ""

    def look(self) -> bool:
        """Look now; return whether all are in place."""
        before, self.displaced = self.displaced, next(filter(None, map(self._displaced, self._opened)), "")
        if self.displaced and not before:
            logger.critical("%s; no more changes", self.displaced)
        elif before and not self.displaced:
            logger.warning("the files of the database are in their places again")
        return not self.displaced

    def _displaced(self, file: Path) -> str:
        try:
            now = os.stat(file)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            what = "was removed or moved away"
        except OSError:
            return ""  # nobody can tell
        else:
            if os.path.samestat(now, self._opened[file]):
                return ""
            what = "is another file than before"
        return f"{file} {what} while the metadata server uses it: {_advice(file)}"

    def require(self) -> None:
        """Raise InternalError unless all are in place now."""
        if not self.look():
            raise InternalError(self.displaced)


def _advice(file: Path) -> str:
    if file.name.endswith("-wal"):
        return "put that very file back, or stop the server and start it again"
    process = os.getpid()
    return (
        f"put that very file back; if it is deleted, process {process} has it open until it ends, as "
        f"`ls -l /proc/{process}/fd` tells: copy it from there, stop the server, put the copy in its place"
    )
