"""The last refused calls, so that `explain` and `status` can say why. Bounded, in memory, one loop."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from wire.errors import QuorumfsError

MOST_INODES = 1000
MOST_LISTED = 20


class Refusals:
    """The last refused call of each of the inodes refused last."""

    def __init__(self, most: int = MOST_INODES) -> None:
        self._most = most
        self._by_inode: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self.count = 0

    def note(self, ino: int, operation: str, error: QuorumfsError) -> None:
        """Remember a refusal; `ino` 0 stands for a call that names no file."""
        self.count += 1
        self._by_inode.pop(ino, None)
        self._by_inode[ino] = {
            "ino": ino,
            "when_ns": time.time_ns(),
            "operation": operation,
            "message": error.message,
            "detail": error.detail,
        }
        while len(self._by_inode) > self._most:
            self._by_inode.popitem(last=False)

    def last(self, ino: int) -> dict[str, Any] | None:
        """Return the last refusal of a file, None if there is none."""
        found = self._by_inode.get(ino)
        return None if found is None else {key: value for key, value in found.items() if key != "ino"}

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest refusals of all files, newest first."""
        return list(reversed(self._by_inode.values()))[:MOST_LISTED]
