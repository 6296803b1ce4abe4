"""What was repaired, gathered and sent to the metadata server's ledger in batches. One event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from typing import Any

from mediator.fanout import survive
from mediator.servers import Metadata
from wire.digest import DIGEST_BYTES
from wire.errors import QuorumfsError
from wire.methods import BookkeepingMethods

FLUSH_SECONDS = 1.0
MOST_WAITING = 4096
BATCH = 64
MOST_FILES = 4
MOST_PATH_BYTES = 512
"""So long is a path at most as the ledger has it, in ASCII: a line that is too long is refused for ever."""

log = logging.getLogger("mediator.ledger")


class Ledger:
    """Entries that wait for the metadata server; while it is away too long, the oldest are dropped."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MOST_WAITING)
        self._batch: list[dict[str, Any]] = []
        """What is being sent: it does not wait any more, and is neither sent by others nor dropped."""
        self._flushing = asyncio.Lock()
        self.written = 0

    def note(self, block: bytes, server: int, verdict: str, before: str, after: str, why: str) -> None:
        """Note one repair: what the vote said of a replica, and its digest (in hex) before and after."""
        self._waiting.append(
            {
                "when_ns": time.time_ns(),
                "block": block.hex(),
                "server": server,
                "verdict": verdict,
                "digest_before": before[: 2 * DIGEST_BYTES],
                "digest_after": after,
                "why": why[:500],
            }
        )

    async def flush(self) -> None:
        """Send what waits now. Raises QuorumfsError: it goes on waiting."""
        async with self._flushing:
            left = len(self._waiting) + len(self._batch)
            while left > 0 and (self._waiting or self._batch):
                while self._waiting and len(self._batch) < BATCH:
                    self._batch.append(self._waiting.popleft())
                for entry in self._batch:
                    if "files" not in entry:
                        entry["files"] = await self._files_of(bytes.fromhex(entry["block"]))
                await self._metadata.ask(BookkeepingMethods.note_repairs, self._batch)
                self.written += len(self._batch)
                left -= len(self._batch)
                self._batch = []

    async def _files_of(self, block: bytes) -> list[str]:
        """Return paths of the files that have a block, or their inode numbers where there is no path."""
        inodes = (await self._metadata.ask(BookkeepingMethods.files_of_block, block))[:MOST_FILES]
        found = []
        for ino in inodes:
            paths = await self._metadata.ask(BookkeepingMethods.paths_of, ino, 1)
            found.append(_cut(paths[0].decode(errors="backslashreplace")) if paths else f"inode {ino}")
        return found

    async def run_forever(self) -> None:
        """Send what waits, from time to time, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await survive(self._try_to_flush(), "the ledger")

    async def _try_to_flush(self) -> None:
        try:
            await self.flush()
        except QuorumfsError as error:
            waiting = len(self._batch) + len(self._waiting)
            log.debug("%d repairs wait for the ledger: %s", waiting, error.message)


def _cut(path: str) -> str:
    """Return as much of a path as a line of the ledger has room for."""
    path = path[:MOST_PATH_BYTES]
    while len(json.dumps(path)) > MOST_PATH_BYTES:
        path = path[:-1]
    return path
