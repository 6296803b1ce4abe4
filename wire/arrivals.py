"""How much of long requests a server holds, of all its connections: what arrives and what is not answered.

While that is too much, a connection with one more long request is not read; short ones go on, so that parts
can always ask each other. Of those that arrive, the oldest is read whatever is held: there always is an end.
One of which nothing comes any more while others wait is closed. Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

MOST_HELD_BYTES = 48 * 1024 * 1024
SHORT_BYTES = 64 * 1024
"""A request of at most so many bytes neither counts nor waits."""
STALLED_SECONDS = 1.0
"""A long request of which nothing came for so long does not keep others waiting."""


class Holder(Protocol):
    """A connection, as far as requests come by it."""

    def read_on(self) -> None:
        """There is room for the request that has to wait: ask again, and read on."""
        ...

    def abort(self, reason: str) -> None:
        """Close at once, with one line in the log."""
        ...


class Arrivals:
    """The long requests of one server."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self._arriving: dict[Holder, int] = {}
        """How long the requests are that arrive, the oldest first."""
        self._last: dict[Holder, float] = {}
        """When something came of them."""
        self._waiting: dict[Holder, int] = {}
        self._wakes = False
        self._watch: asyncio.TimerHandle | None = None

    def admit(self, holder: Holder, size: int) -> bool:
        """Tell whether a connection may be read on, of whose request of `size` bytes some have come.

        Where it may not, its `read_on` is called when it may. A size of 0 says that nothing arrives there.
        """
        size = size if size > SHORT_BYTES else 0
        if not size and holder not in self._arriving and holder not in self._waiting:
            return True
        if not self._fits(holder, size):
            self._waiting[holder] = size
            self._watch_soon()
            return False
        self._waiting.pop(holder, None)
        before = self._arriving.get(holder, 0)
        if size:
            self._arriving[holder] = size
            self._last[holder] = asyncio.get_running_loop().time()
        elif before:
            del self._arriving[holder], self._last[holder]
        if size != before:
            self.hold(size - before)
        return True

    def hold(self, size: int) -> None:
        """Count the bytes of a request that is being carried out; negative when it has ended."""
        self.held_bytes += size
        if size < 0 and self._waiting and not self._wakes:
            self._wakes = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _fits(self, holder: Holder, size: int) -> bool:
        more = size - self._arriving.get(holder, 0)
        if more <= 0 or self.held_bytes + more <= MOST_HELD_BYTES:
            return True
        return next(iter(self._arriving), holder) is holder

    def _wake(self) -> None:
        self._wakes = False
        for holder, size in list(self._waiting.items()):
            if not self._fits(holder, size):
                break
            if self._waiting.pop(holder, None) is not None:
                holder.read_on()

    def _watch_soon(self) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._end_stalled)

    def _end_stalled(self) -> None:
        """Close the connections that keep others waiting for nothing."""
        self._watch = None
        if not self._waiting:
            return
        stalled_since = asyncio.get_running_loop().time() - STALLED_SECONDS
        for holder in [holder for holder, last in self._last.items() if last <= stalled_since]:
            if holder not in self._waiting:
                holder.abort(
                    f"nothing came of its request for {STALLED_SECONDS:g} s, and others wait for room"
                )
        self._watch_soon()
