"""The asyncio client's MessagePack-RPC connection: pipelined, answers in any order.

It connects at the first call, and again at the next one after the connection broke; calls that come
meanwhile share the attempt. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from wire.address import Address, UnixAddress
from wire.errors import DeadlineExceeded, Unavailable
from wire.msgpack_codec import ANSWER, LARGEST_ID, Buffer, Decoder, Encoder, Malformed, error_of

log = logging.getLogger("wire.client")

MAX_ANSWER_BYTES = 64 * 1024 * 1024
REFUSED_SECONDS = 0.05
"""For so long after a failed attempt to connect, calls fail with its error instead of trying again."""


class MsgpackLink:
    """One pipelined connection to one server; see Client for the arguments."""

    def __init__(
        self, address: Address, connect_seconds: float, on_disconnect: Callable[[], None] | None = None
    ) -> None:
        self._address = address
        self._connect_seconds = connect_seconds
        self._on_disconnect = on_disconnect
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._refused: Unavailable | None = None
        self._refused_until = 0.0
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def call(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> Any:
        """Send one call, wait for its answer; see Client.call."""
        connection = self._connection
        if connection is not None and connection.writable:
            return await connection.send(name, params, deadline_seconds)
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_seconds
        try:
            async with asyncio.timeout(deadline_seconds):
                connection = await self._connected()
                await connection.until_writable()
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: {self._address} did not take the call in time") from None
        return await connection.send(name, params, until - loop.time())

    async def close(self) -> None:
        """Close; calls in flight fail with Unavailable."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort("this client was closed")
            await asyncio.sleep(0)  # the transport tells its end at the loop's next turn

    async def _connected(self) -> _Connection:
        if self._connection is not None:
            return self._connection
        if self._closed:
            raise Unavailable(f"{self._address}: this client was closed")
        if self._refused is not None and asyncio.get_running_loop().time() < self._refused_until:
            raise Unavailable(self._refused.message)
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        # Shielded: one caller's deadline must not end the attempt that others share.
        try:
            connection = await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed:
                raise Unavailable(f"{self._address}: this client was closed") from None
            raise
        if not connection.stands:
            raise Unavailable(f"{self._address}: the connection broke as soon as it stood")
        return connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                if isinstance(self._address, UnixAddress):
                    _, made = await loop.create_unix_connection(self._new_connection, self._address.path)
                else:
                    _, made = await loop.create_connection(
                        self._new_connection, self._address.host, self._address.port
                    )
        except TimeoutError:
            raise self._refuse("no connection in time") from None
        except OSError as error:
            raise self._refuse(error.strerror or str(error)) from None
        self._connection = made if made.stands else None
        self._refused = None
        return made

    def _refuse(self, reason: str) -> Unavailable:
        self._refused = Unavailable(f"{self._address}: {reason}")
        self._refused_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        return self._refused

    def _connect_ended(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # every caller may have gone meanwhile

    def _new_connection(self) -> _Connection:
        return _Connection(str(self._address), self._lost)

    def _lost(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._connection = None
            if self._on_disconnect is not None and not self._closed:
                self._on_disconnect()


class _Connection(asyncio.Protocol):
    """One established connection and the calls in flight on it."""

    def __init__(self, address: str, lost: Callable[[_Connection], None]) -> None:
        self._address = address
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._encoder = Encoder()
        self._decoder = Decoder(MAX_ANSWER_BYTES)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._room: asyncio.Future[None] | None = None
        self._reason = "the connection broke"
        self.stands = False
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.stands = True
        endpoint = transport.get_extra_info("socket")
        if endpoint is not None and endpoint.family != socket.AF_UNIX:
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self.stands = False
        self.resume_writing()
        self._lost(self)
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                answer.set_exception(self._broken())

    def abort(self, reason: str) -> None:
        self._reason = reason
        self._transport.abort()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    async def until_writable(self) -> None:
        """Wait until the server has taken enough of what was sent."""
        while not self.writable:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    async def send(self, name: str, params: Sequence[Any], deadline_seconds: float) -> Any:
        """Send a call, wait for its answer."""
        if not self.stands:
            raise self._broken()
        request_id = self._last_id = (self._last_id + 1) & LARGEST_ID
        buffers = self._encoder.request(request_id, name, params)
        answer = self._pending[request_id] = self._loop.create_future()
        timer = self._loop.call_later(deadline_seconds, self._too_late, answer, name)
        try:
            if len(buffers) == 1:
                self._transport.write(buffers[0])
            else:
                self._transport.writelines(buffers)
            return await answer
        finally:
            timer.cancel()
            self._pending.pop(request_id, None)

    def data_received(self, data: Buffer) -> None:
        self._decoder.feed(data)
        try:
            while (message := self._decoder.next()) is not None:
                self._take(message)
        except Malformed as error:
            log.warning("closed the connection to %s: %s", self._address, error)
            self.abort(f"an answer that cannot be read: {error}")

    def _take(self, message: list[Any]) -> None:
        kind, request_id, fault, result = message
        if kind != ANSWER or type(request_id) is not int:
            raise Malformed("not an answer")
        answer = self._pending.get(request_id)
        if answer is None or answer.done():
            return  # it comes after its deadline
        if fault is None:
            answer.set_result(result)
        else:
            answer.set_exception(error_of(fault))

    def _too_late(self, answer: asyncio.Future[Any], name: str) -> None:
        if not answer.done():
            answer.set_exception(DeadlineExceeded(f"{name}: no answer of {self._address} in time"))

    def _broken(self) -> Unavailable:
        return Unavailable(f"{self._address}: {self._reason}")
