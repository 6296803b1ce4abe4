"""How much of its answers a server keeps for peers that do not read them: bounded over all connections.

Beyond that the connection is closed whose peer has taken nothing for longest; and any whose peer takes
nothing for minutes, which would else have it for ever. Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

MOST_UNREAD_BYTES = 32 * 1024 * 1024
UNREAD_SECONDS = 120.0
"""A peer that takes nothing of its answers for so long is left. One may be stopped for a while."""


class Writer(Protocol):
    """A connection, as far as its answers are taken."""

    def abort(self, reason: str) -> None:
        """Close at once, with one line in the log."""
        ...


class _Unread:
    """What one peer has not taken yet, and since when it took nothing. `held_bytes`: what stays for that."""

    def __init__(self, transport: Any, written_bytes: int, now: float) -> None:
        self._transport = transport
        self.size = self._now_unread()
        self.held_bytes = max(self.size, written_bytes)
        self.since = now

    def _now_unread(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def look(self, now: float) -> None:
        """Look whether some of it was taken."""
        size = self._now_unread()
        if size < self.size:
            self.since = now
        self.size = size


class UnreadAnswers:
    """The connections of one server whose peers do not read fast enough."""

    def __init__(self) -> None:
        self._kept: dict[Writer, _Unread] = {}

    def begin(self, writer: Writer, transport: Any, written_bytes: int) -> None:
        """Note that a peer does not take what it is sent as fast as that is written.

        Args:
            writer: the connection.
            transport: what tells how much is to be sent still.
            written_bytes: how long the answers are of which something is. All stays until all is sent.
        """
        self._kept[writer] = _Unread(transport, written_bytes, asyncio.get_running_loop().time())
        self.look()

    def end(self, writer: Writer) -> None:
        """Note that it has taken enough of it, or that the connection is closed."""
        self._kept.pop(writer, None)

    def look(self) -> None:
        """Close the connections whose answers are kept in vain; to be called from time to time, too."""
        now = asyncio.get_running_loop().time()
        for unread in self._kept.values():
            unread.look(now)
        total = sum(unread.held_bytes for unread in self._kept.values())
        for writer, unread in sorted(self._kept.items(), key=lambda item: item[1].since):
            if total > MOST_UNREAD_BYTES:
                total -= unread.held_bytes
                reason = "the answers that peers do not read take too much memory"
            elif now - unread.since >= UNREAD_SECONDS:
                reason = f"its peer took nothing of its answers for {UNREAD_SECONDS:g} s"
            else:
                return
            del self._kept[writer]
            writer.abort(reason)
