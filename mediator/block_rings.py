"""The mediator's end of the rings of blocks: small blocks given to data servers beside it without a call.

A block that lies in a server's ring is the server's: it takes it in before it answers anybody, whoever is
killed meanwhile (wire.block_ring, dataserver.block_rings). So it counts as put once it is written, if the
head, read after that, says still that it will be taken in, the file has a name still, and the connection
stands by which the server told of it. If not, nobody knows, and it is put by a call, which changes nothing
where it is already. Decides nothing about quorums. One event
loop. See docs/decisions/0032-puts-without-a-call.md.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mediator.servers import Server
from wire.block_ring import MOST_BYTES, RING_BYTES, GivenBlock, pack_record, record_offset
from wire.digest import Buffer
from wire.messages import BlockRecord, BlockRing
from wire.methods import DataMethods
from wire.request import request_of
from wire.ring_head import BLOCKS, HEAD_READ_BYTES, NAMES, unpack_head

RUN_SECONDS = 0.25
"""A block so soon after another one is of the same run; the first of a run is put by a call."""
BEHIND_SECONDS = 0.1
"""A server that has taken in nothing for so long, though something waits, is not relied on without a call."""
ASK_AGAIN_SECONDS = 1.0
"""A server that had no ring, or ended it, is asked for one after so long."""
NONE_HERE_SECONDS = 60.0
"""The same of one whose ring is not on this machine."""


class BlockRings:
    """The rings of all data servers that have one for this mediator.

    Args:
        servers: the data servers.
        deadline_seconds: of the call that asks for a ring.
    """

    def __init__(self, servers: Sequence[Server], deadline_seconds: float) -> None:
        self._rings = {server.number: _Ring(server, deadline_seconds) for server in servers}
        self._last = -RUN_SECONDS

    def give(self, targets: Sequence[Server], record: BlockRecord, data: Buffer) -> Collection[int]:
        """Give a block to those of some servers that take it so; return their numbers."""
        if len(data) > MOST_BYTES:
            return ()
        now = time.monotonic()
        is_of_run = now - self._last < RUN_SECONDS
        self._last = now
        if not is_of_run:
            return ()
        rings = [self._rings[server.number] for server in targets]
        written = [ring for ring in rings if ring.write(now, record, data)]
        return {ring.server.number for ring in written if ring.has_it(now)}

    def close(self) -> None:
        """Leave all rings; what is in them is the servers'."""
        for ring in self._rings.values():
            ring.close()


class _Ring:
    """One server's."""

    def __init__(self, server: Server, deadline_seconds: float) -> None:
        self.server = server
        self._deadline_seconds = deadline_seconds
        self._handle = -1
        self._connection = 0
        """By which the ring was told of: another may be to another life of the server, on another disk."""
        self._term = self._number = self._taken = self._room_until = 0
        self._moved = 0.0
        """When the server was last seen to have taken something in, or nothing waited for it."""
        self._ask_from = 0.0

    def write(self, now: float, record: BlockRecord, data: Buffer) -> bool:
        """Write a block into the ring; False if it was not, or nobody knows."""
        if self._handle < 0:
            self._ask(now)
            return False
        number = self._number + 1
        if (number > self._room_until or self._is_behind(now)) and not self._look(now):
            return False
        if number > self._room_until or self._is_behind(now):
            return False
        packed = pack_record(GivenBlock(number, self._term, len(data), record.block, record.digest))
        try:
            offset = record_offset(number) - len(data)
            if os.pwritev(self._handle, [data, packed], offset) != len(data) + len(packed):
                raise OSError("only a part was written")
        except OSError:
            self._leave(now)
            return False
        self._number = number
        return True

    def has_it(self, now: float) -> bool:
        """Tell whether the server is certain to take in what was written last."""
        return self._look(now) and self._number <= self._room_until and self._is_reached(now)

    def _is_reached(self, now: float) -> bool:
        """Tell whether the server that owns the ring lives, and its next life will find it; else leave it."""
        lives = self.server.client.open_connection() == self._connection
        if lives and os.fstat(self._handle).st_nlink:
            return True
        self._leave(now)
        return False

    def _is_behind(self, now: float) -> bool:
        return self._number > self._taken and now - self._moved > BEHIND_SECONDS

    def _look(self, now: float) -> bool:
        """Read what the server says of the ring; False if it takes in nothing more, and the ring is left."""
        try:
            head = unpack_head(os.pread(self._handle, HEAD_READ_BYTES, 0))
            if head is None:  # it was being written
                head = unpack_head(os.pread(self._handle, HEAD_READ_BYTES, 0))
        except OSError:
            head = None
        if head is None or head.term != self._term or not head.room_until:
            self._leave(now)
            return False
        if head.taken != self._taken or self._number <= head.taken:
            self._moved = now
        self._taken, self._room_until = head.taken, head.room_until
        return True

    def _leave(self, now: float) -> None:
        self.close()
        self._ask_from = now + ASK_AGAIN_SECONDS

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _ask(self, now: float) -> None:
        if now < self._ask_from or not self.server.client.open_connection():
            return
        self._ask_from = now + self._deadline_seconds + ASK_AGAIN_SECONDS
        self.server.begin(self._deadline_seconds, request_of(DataMethods.open_ring), self._enter)

    def _enter(self, answer: Any) -> None:
        """Open the ring that a server tells of; not that of another machine, which has another term."""
        now = time.monotonic()
        self._ask_from = now + ASK_AGAIN_SECONDS
        connection = self.server.client.open_connection()
        if self._handle >= 0 or not isinstance(answer, BlockRing) or not answer.term or not connection:
            return
        if not Path(os.fsdecode(answer.place)).name.startswith(f"{NAMES}{BLOCKS}-"):
            return
        try:
            handle = os.open(answer.place, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError):
            self._ask_from = now + NONE_HERE_SECONDS
            return
        found = os.fstat(handle)
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_size == RING_BYTES
        if not is_ours:
            os.close(handle)
            self._ask_from = now + NONE_HERE_SECONDS
            return
        self._handle, self._connection = handle, connection
        self._term, self._number, self._taken, self._room_until = answer.term, 0, 0, 0
        self._moved = now
