"""How much of its answers a server keeps for peers that do not read them: bounded over all connections.

Beyond that the connection is closed whose peer has taken nothing for longest; so is any whose peer takes
nothing for a second while other answers wait for the room (wire.making), or for minutes, which would else
have it for ever. Who reads slowly is left alone. Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

MOST_UNREAD_BYTES = 40 * 1024 * 1024
"""More than what is only made while there is room: the rest may be written at any time."""
STALLED_SECONDS = 1.0
"""A peer that takes nothing of its answers for so long does not keep other answers waiting."""
TAKEN_BYTES = 64 * 1024
"""Taking less than this is taking nothing."""
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
        if size <= self.size - TAKEN_BYTES:
            self.since = now
            self.size = size


class UnreadAnswers:
    """The connections of one server whose peers do not read fast enough.

    Args:
        freed: called when less is kept.
    """

    def __init__(self, freed: Callable[[], None]) -> None:
        self._kept: dict[Writer, _Unread] = {}
        self._freed = freed

    @property
    def held_bytes(self) -> int:
        """How many bytes are kept."""
        return sum(unread.held_bytes for unread in self._kept.values())

    def begin(self, writer: Writer, transport: Any, written_bytes: int) -> None:
        """Note that a peer does not take what it is sent as fast as that is written.

        Args:
            writer: the connection.
            transport: what tells how much is to be sent still.
            written_bytes: how long the answers are of which something is. All stays until all is sent.
        """
        self._kept[writer] = _Unread(transport, written_bytes, asyncio.get_running_loop().time())
        self.look()

    def more(self, writer: Writer, written_bytes: int) -> None:
        """Note that one more answer was written to such a peer; `written_bytes` as in `begin`."""
        if (unread := self._kept.get(writer)) is not None:
            unread.size += written_bytes - unread.held_bytes
            unread.held_bytes = written_bytes
            self.look()

    def end(self, writer: Writer) -> None:
        """Note that it has taken enough of it, or that the connection is closed."""
        if self._kept.pop(writer, None) is not None:
            self._freed()

    def look(self, others_wait: bool = False) -> None:
        """Close the connections whose answers are kept in vain; to be called from time to time, too."""
        now = asyncio.get_running_loop().time()
        for unread in self._kept.values():
            unread.look(now)
        total = self.held_bytes
        for writer, unread in sorted(self._kept.items(), key=lambda item: item[1].since):
            if total > MOST_UNREAD_BYTES:
                reason = "the answers that peers do not read take too much memory"
            elif others_wait and now - unread.since >= STALLED_SECONDS:
                reason = f"its peer took nothing of its answers for {STALLED_SECONDS:g} s, and others wait"
            elif now - unread.since >= UNREAD_SECONDS:
                reason = f"its peer took nothing of its answers for {UNREAD_SECONDS:g} s"
            else:
                return
            total -= unread.held_bytes
            self.end(writer)
            writer.abort(reason)
