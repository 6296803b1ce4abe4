"""How much of requests a server holds, of all its connections: what arrives and what is not answered.

While that is too much, a connection is not read on by which a long request comes, or which has a call in
flight. One short call of each goes on, so that parts can always ask each other; and of the long requests that
arrive, the oldest is read whatever has come of others: there always is an end. One of which nothing comes any
more while others wait is closed. Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from wire.sizes import memory_bytes

MOST_HELD_BYTES = 32 * 1024 * 1024
SHORT_BYTES = 16 * 1024
"""A request of at most so many bytes does not count while it arrives."""
CALL_BYTES = 6 * 1024
"""What a call in flight takes beside its parameters: a task or future, and what it is to be answered by."""
LOOKED_AT_BYTES = 4 * 1024
"""The values of a shorter request are not looked at."""
MOST_WAITING_CALLS = 12_000
"""So many calls that wait for other callers are not counted. The metadata server has an own, lower bound."""
STALLED_SECONDS = 3.0
"""A long request of which nothing came for so long does not keep others waiting."""


class Holder(Protocol):
    """A connection, as far as requests come by it."""

    def read_on(self) -> None:
        """There is room for the request that has to wait: ask again, and read on."""
        ...

    def has_more(self) -> bool:
        """Tell whether something has come by it that was not read yet."""
        ...

    def abort(self, reason: str) -> None:
        """Close at once, with one line in the log."""
        ...


def call_bytes(message_bytes: int, params: Any) -> int:
    """Return how much memory a call takes while it is in flight.

    Args:
        message_bytes: how long the request was.
        params: its parameters, each of which may take much more than its bytes in the request.
    """
    size = max(message_bytes, memory_bytes(params)) if message_bytes > LOOKED_AT_BYTES else message_bytes
    return CALL_BYTES + size


class Arrivals:
    """The requests of one server."""

    def __init__(self) -> None:
        self._called_bytes = 0
        """How long the requests are that are being carried out."""
        self._arriving_bytes = 0
        """How long those are together that arrive."""
        self._waiting_calls = 0
        self._arriving: dict[Holder, int] = {}
        """How long each of them is, the oldest first."""
        self._last: dict[Holder, float] = {}
        """When something came of them."""
        self._waiting: dict[Holder, int] = {}
        """What each asked for, who has waited longest first; 0 of one that has calls in flight."""
        self._wakes = False
        self._watch: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether no more is to be held."""
        return self._called_bytes + self._arriving_bytes >= MOST_HELD_BYTES

    def admit(self, holder: Holder, size: int) -> bool:
        """Tell whether a connection may be read on, of whose request of `size` bytes some have come.

        Where it may not, its `read_on` is called when it may. A size of 0 says that nothing arrives there.
        """
        size = size if size > SHORT_BYTES else 0
        if not size and holder not in self._arriving and holder not in self._waiting:
            return True
        if not self._fits(holder, size):
            self._wait(holder, size)
            return False
        self._waiting.pop(holder, None)
        before = self._arriving.get(holder, 0)
        if size:
            self._arriving[holder] = size
            self._last[holder] = asyncio.get_running_loop().time()
        elif before:
            del self._arriving[holder], self._last[holder]
        self._arriving_bytes += size - before
        if size < before:
            self._wake_soon()
        return True

    def admit_more(self, holder: Holder) -> bool:
        """Tell whether a connection may be read that has calls in flight; as `admit`."""
        if self.is_full:
            self._wait(holder, 0)
            return False
        return True

    def hold(self, size: int) -> None:
        """Count the bytes of a request that is being carried out; negative when it has ended."""
        self._called_bytes += size
        if size < 0:
            self._wake_soon()

    def _wake_soon(self) -> None:
        if self._waiting and not self._wakes:
            self._wakes = True
            asyncio.get_running_loop().call_soon(self._wake)

    def begin_waiting(self) -> bool:
        """Tell whether a call that only waits for other callers need not be counted, and note it if so."""
        has_room = self._waiting_calls < MOST_WAITING_CALLS
        self._waiting_calls += has_room
        return has_room

    def end_waiting(self) -> None:
        """Note that such a call has ended."""
        self._waiting_calls -= 1

    def _wait(self, holder: Holder, size: int) -> None:
        self._waiting[holder] = size
        if self._watch is None:
            self._watch_soon()

    def _fits(self, holder: Holder, size: int) -> bool:
        more = size - self._arriving.get(holder, 0)
        if more <= 0 or self._called_bytes + self._arriving_bytes + more <= MOST_HELD_BYTES:
            return True
        is_oldest = next(iter(self._arriving), holder) is holder
        return is_oldest and (not self._called_bytes or self._called_bytes + size <= MOST_HELD_BYTES)

    def _may_go_on(self, holder: Holder, size: int) -> bool:
        return self._fits(holder, size) if size else not self.is_full

    def _wake(self) -> None:
        """Let those read on for whom there is room; first the one that need not wait for others."""
        self._wakes = False
        oldest = next(iter(self._arriving), None)
        if oldest is not None and (size := self._waiting.get(oldest)) and self._fits(oldest, size):
            del self._waiting[oldest]
            oldest.read_on()
        for holder, size in list(self._waiting.items()):
            if not self._may_go_on(holder, size):
                break
            if self._waiting.pop(holder, None) is not None:
                holder.read_on()

    def _watch_soon(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._end_stalled)

    def _end_stalled(self) -> None:
        """Close the connections that keep others waiting for nothing."""
        self._watch = None
        if not self._waiting:
            return
        now = asyncio.get_running_loop().time()
        for holder, last in list(self._last.items()):
            if now - last < STALLED_SECONDS or holder in self._waiting:
                continue
            if holder.has_more():  # the server is late, not the peer
                self._last[holder] = now
            else:
                holder.abort(
                    f"nothing came of its request for {STALLED_SECONDS:g} s, and others wait for room"
                )
        self._watch_soon()
