"""How long the answers may be that a server makes at the same time, over all connections.

A call whose answer may be long begins when there is room for it, beside what was made and not read yet
(wire.unread); until then it costs what its parameters do. Who waits is let in by turns, one call of a
connection after one of another, and no connection has all of the room. Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from wire.unread import STALLED_SECONDS, UnreadAnswers

MOST_MADE_BYTES = 32 * 1024 * 1024
MOST_OF_ONE_BYTES = MOST_MADE_BYTES // 2


class Maker(Protocol):
    """A connection, as far as long answers are made for it."""

    def make_on(self) -> None:
        """There is room for an answer that had to wait: begin it."""
        ...


class Making:
    """The long answers that one server makes.

    Attributes:
        unread: those that were made, and that their peers have not taken yet.
    """

    def __init__(self) -> None:
        self.unread = UnreadAnswers(self._wake_soon)
        self._made: dict[Maker, int] = {}
        """How long those may be that are made for each connection."""
        self._total_bytes = 0
        self._waiting: dict[Maker, int] = {}
        """How long the next one may be of those that wait for others, who has waited longest first."""
        self._next: Maker | None = None
        """Whose turn it is now."""
        self._wakes = False
        self._watch: asyncio.TimerHandle | None = None

    def begin(self, maker: Maker, size: int) -> bool:
        """Tell whether an answer of at most `size` bytes may be made now, and count it if so.

        Where it may not because of others, the connection's `make_on` is called when it should ask again;
        where it has its share of the room, it should when one of its own was made.
        """
        made_bytes = self._made.get(maker, 0)
        if made_bytes and made_bytes + size > MOST_OF_ONE_BYTES:
            return False
        if not self._fits(size) or (self._waiting and self._next is not maker):
            self._waiting[maker] = size
            self._watch_soon()
            return False
        self._next = None
        self._made[maker] = made_bytes + size
        self._total_bytes += size
        return True

    def end(self, maker: Maker, size: int) -> None:
        """Note that such an answer was made, and written, or that there is none."""
        self._total_bytes -= size
        if left := self._made[maker] - size:
            self._made[maker] = left
        else:
            del self._made[maker]
        self._wake_soon()

    def leave(self, maker: Maker) -> None:
        """Note that nothing waits any more that is to be made for a connection."""
        if self._waiting.pop(maker, None) is not None:
            self._wake_soon()

    def _fits(self, size: int) -> bool:
        return self._total_bytes + self.unread.held_bytes + size <= MOST_MADE_BYTES

    def _wake_soon(self) -> None:
        if self._waiting and not self._wakes:
            self._wakes = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._wakes = False
        for maker, size in list(self._waiting.items()):
            if not self._fits(size):
                break
            if self._waiting.pop(maker, None) is not None:
                self._next = maker
                maker.make_on()
        self._next = None

    def _watch_soon(self) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._end_stalled)

    def _end_stalled(self) -> None:
        """Close the connections that keep others waiting for nothing."""
        self._watch = None
        if self._waiting:
            self.unread.look(others_wait=True)
            self._watch_soon()
