"""The connections of one server, whatever they speak. Belongs to the server's event loop."""

from __future__ import annotations

import asyncio
import fcntl
import termios
from collections.abc import Iterator
from typing import Any, Protocol

from wire.arrivals import Arrivals
from wire.making import Making


class Connection(Protocol):
    """What the server asks of each connection."""

    def overdue(self, now: float, request_seconds: float) -> bool:
        """Tell whether half a request has been here for too long."""
        ...

    def abort(self, reason: str) -> None:
        """Close at once, with one line in the log."""
        ...

    async def drain(self) -> None:
        """Refuse new calls, finish those in flight, close."""
        ...


class Connections:
    """Those that are open now.

    Attributes:
        making: the long answers that are made for them.
        arrivals: the long requests that come by them.
        unread: the answers that their peers have not taken yet.
    """

    def __init__(self) -> None:
        self.making = Making()
        self.arrivals = Arrivals()
        self.unread = self.making.unread
        self._open: dict[Connection, None] = {}
        """In the order in which they began, so that a simulated server ends them as it did before."""
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    def add(self, connection: Connection) -> None:
        self._open[connection] = None
        self._none.clear()

    def discard(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        if not self._open:
            self._none.set()

    async def until_none(self) -> None:
        """Wait until all are closed."""
        await self._none.wait()


def has_more(transport: Any) -> bool:
    """Tell whether a connection has received something that was not read yet. Source: tcp(7), SIOCINQ."""
    endpoint = transport.get_extra_info("socket")
    if endpoint is None or endpoint.fileno() < 0:
        return False
    return int.from_bytes(fcntl.ioctl(endpoint.fileno(), termios.FIONREAD, bytes(4)), "little") > 0
