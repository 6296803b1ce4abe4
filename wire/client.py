"""A client's end of the wire for asyncio: calls by table method, one attempt each.

It connects lazily, and again at the next call after a connection broke. It must not decide to send
again: that is the caller's. Belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from wire.address import parse_address
from wire.client_msgpack import MsgpackLink
from wire.client_xml import XmlLink
from wire.config import Encoding
from wire.table import method_of

P = ParamSpec("P")
R = TypeVar("R")


class Link(Protocol):
    """How calls get to a server in one encoding."""

    @property
    def connected(self) -> bool: ...

    async def call(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> Any: ...

    async def close(self) -> None: ...


class Client:
    """Calls one server.

    Args:
        address: "HOST:PORT", "[IPV6]:PORT" or "unix:PATH".
        rpc: the encoding to speak.
        connect_seconds: a connection must be established within.
        on_disconnect: called (on the event loop) as soon as an established connection is seen broken.
    """

    def __init__(
        self,
        address: str,
        rpc: Encoding = "msgpack",
        *,
        connect_seconds: float = 2.0,
        on_disconnect: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        kind = MsgpackLink if rpc == "msgpack" else XmlLink
        self._link: Link = kind(parse_address(address), connect_seconds, on_disconnect)

    @property
    def connected(self) -> bool:
        """Whether a connection stands now, as far as is known (False before the first call)."""
        return self._link.connected

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
        spec = method_of(method)
        answer = await self._link.call(deadline_seconds, spec.name, spec.positional(args, kwargs))
        return spec.answer(answer)  # type: ignore[no-any-return]

    async def forward(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> Any:
        """Pass a call on by name, with raw parameters; return the raw result. Raises as `call`."""
        return await self._link.call(deadline_seconds, name, params)

    async def close(self) -> None:
        """Close the connection; calls in flight fail with Unavailable."""
        await self._link.close()
