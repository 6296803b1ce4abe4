"""A client's end of the wire for asyncio: calls by table method, one attempt each.

It connects lazily, and again at the next call after a connection broke. It must not decide to send
again: that is the caller's. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from wire.address import parse_address
from wire.client_msgpack import MsgpackLink
from wire.config import Encoding
from wire.errors import QuorumfsError
from wire.lending import Lender
from wire.request import Request, Then, as_it_is, raw_request, request_of, settle

P = ParamSpec("P")
R = TypeVar("R")


class Link(Protocol):
    """How calls get to a server in one encoding."""

    @property
    def connected(self) -> bool: ...

    def open_connection(self) -> int: ...

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None: ...

    async def close(self) -> None: ...


class Client:
    """Calls one server.

    Args:
        address: "HOST:PORT", "[IPV6]:PORT" or "unix:PATH".
        rpc: the encoding to speak.
        connect_seconds: a connection must be established within.
        silence_seconds: one on which a call is late, and nothing came for so long, is given up: it may be
            half-open (the other end is gone and could not say so), and the next call makes a new one.
        on_disconnect: called (on the event loop) as soon as an established connection is seen broken.
        lender: whose memory is offered to the server, if it is one of this machine.
    """

    def __init__(
        self,
        address: str,
        rpc: Encoding = "msgpack",
        *,
        connect_seconds: float = 2.0,
        silence_seconds: float = 10.0,
        on_disconnect: Callable[[], None] | None = None,
        lender: Lender | None = None,
    ) -> None:
        self.address = address
        parsed = parse_address(address)
        self._link: Link
        if rpc == "msgpack":
            self._link = MsgpackLink(parsed, connect_seconds, silence_seconds, on_disconnect, lender)
        else:
            from wire.client_xml import XmlLink  # brings aiohttp, which takes longer than all the rest

            self._link = XmlLink(parsed, connect_seconds, on_disconnect)

    @property
    def connected(self) -> bool:
        """Whether a connection stands now, as far as is known (False before the first call)."""
        return self._link.connected

    def open_connection(self) -> int:
        """Return the number of the connection that stands, as the kernel says now; 0: none, or not asked.

        Each connection has another number: with the same one as before, the server has lived on.
        """
        return self._link.open_connection()

    async def call(
        self,
        deadline_seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a method of a table once: `await client.call(5.0, DataMethods.count)`.

        Args:
            deadline_seconds: the call fails after that long.
            method: the table's function.
            args: its arguments.
            kwargs: its arguments by name.

        Raises:
            Unavailable: no connection, or it broke; at once if the connection is refused.
            DeadlineExceeded: no answer in time; the call may still be carried out.
            QuorumfsError: what the server raised.
        """
        request = request_of(method, *args, **kwargs)
        return request.result(await self._raw(deadline_seconds, request))  # type: ignore[no-any-return]

    def forward(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> asyncio.Future[Any]:
        """Pass a call on by name, with raw parameters; return the raw result. Raises as `call`."""
        return self._raw(deadline_seconds, raw_request(name, params))

    def _raw(self, deadline_seconds: float, request: Request[Any]) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._link.begin(deadline_seconds, request, partial(settle, future))
        return future

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        """Send a request that may go to other servers too; `then` is called once, with what came of it.

        What came is the result, or the error that `call` would raise. It may come before this returns.
        """
        if request.result is as_it_is:
            self._link.begin(deadline_seconds, request, then)
            return

        def answered(answer: Any) -> None:
            if not isinstance(answer, QuorumfsError):
                try:
                    answer = request.result(answer)
                except QuorumfsError as error:
                    answer = error
            then(answer)

        self._link.begin(deadline_seconds, request, answered)

    async def close(self) -> None:
        """Close the connection; calls in flight fail with Unavailable."""
        await self._link.close()
