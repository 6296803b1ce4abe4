"""The asyncio client's MessagePack-RPC connection: pipelined, answers in any order.

It connects at the first call, and again at the next one after the connection broke; calls that come
meanwhile share the attempt. A call costs no task and no timer of its own. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from wire.address import Address, TcpAddress, UnixAddress
from wire.errors import BadRequest, DeadlineExceeded, Unavailable
from wire.lending import LEND, LEND_ROOM, Lender, make_room
from wire.msgpack_codec import ANSWER, LARGEST_ID, Buffer, Decoder, Encoder, Workbench, error_of
from wire.msgpack_long import Malformed
from wire.names import look_up
from wire.request import Request, Then, failure_of, raw_request
from wire.shortcut import connect_beside
from wire.tcp import set_up_caller

log = logging.getLogger("wire.client")

MAX_ANSWER_BYTES = 64 * 1024 * 1024
REFUSED_SECONDS = 0.05
"""For so long after a failed attempt to connect, calls fail with its error instead of trying again."""
MOST_SENT_BYTES = 8 * 1024 * 1024
"""Of the long calls that a server has not answered, so much is on its way at a time, so that it need not stop
reading (wire.arrivals): short calls go past those that wait here. Bytes that are lent do not count."""
LAST_LOOK_SECONDS = 0.02
"""A deadline is over so much later than it says: the loop, which may have been stopped itself, looks first at
what has come meanwhile."""
OFFER_SECONDS = 60.0
"""A server may be so late to take memory that is offered to it; what it has to do meanwhile does without."""
LENT_SECONDS = 30.0
"""The bytes that a call lent stay so long after its connection broke: the server may be at work on it."""


class MsgpackLink:
    """One pipelined connection to one server; see Client for the arguments."""

    def __init__(
        self,
        address: Address,
        connect_seconds: float,
        silence_seconds: float,
        on_disconnect: Callable[[], None] | None = None,
        lender: Lender | None = None,
    ) -> None:
        self._address = address
        self._lender = lender
        self._connect_seconds, self._silence_seconds = connect_seconds, silence_seconds
        self._on_disconnect = on_disconnect
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._refused: Unavailable | None = None
        self._refused_until = 0.0
        self._closed = False
        self._count = 0
        """How many connections there were."""

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def open_connection(self) -> int:
        """Return the number of the connection that stands, as the kernel says now; 0 if none does."""
        return self._count if self._connection is not None and self._connection.is_open() else 0

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        """Send one call; `then` gets the raw result, or the error. See Client.call."""
        connection = self._connection
        if connection is not None and connection.writable:
            connection.begin(request, deadline_seconds, then)
            return
        task = asyncio.get_running_loop().create_task(self._begin_later(deadline_seconds, request, then))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _begin_later(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        """Send a call as soon as there is a connection with room for it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_seconds
        try:
            async with asyncio.timeout(deadline_seconds):
                connection = await self._connected()
                await connection.until_writable()
        except TimeoutError:
            then(DeadlineExceeded(f"{request.name}: {self._address} did not take the call in time"))
        except Exception as error:
            then(failure_of(error, request.name))
        else:
            connection.begin(request, until - loop.time(), then)

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
                elif (beside := connect_beside(self._address)) is not None:
                    _, made = await loop.create_unix_connection(self._new_connection, sock=beside)
                else:
                    made = await self._connect_by_tcp(self._address, loop.time() + self._connect_seconds)
        except TimeoutError:
            raise self._refuse("no connection in time") from None
        except OSError as error:
            raise self._refuse(error.strerror or str(error)) from None
        self._connection = made if made.stands else None
        self._count += 1
        self._refused = None
        if self._lender is not None:
            made.offer(self._lender)
        return made

    async def _connect_by_tcp(self, address: TcpAddress, until: float) -> _Connection:
        """Connect to the first of a host's addresses that takes it. Raises OSError, TimeoutError.

        One that says nothing leaves time for the others.
        """
        loop = asyncio.get_running_loop()
        known = await self._hosts_of(address)
        for left, host in zip(range(len(known), 0, -1), known, strict=True):
            now = loop.time()
            try:
                async with asyncio.timeout((until - now) / left):
                    _, made = await loop.create_connection(self._new_connection, *host)
                    return made
            except (OSError, TimeoutError):
                if left == 1:
                    raise
        raise OSError("it has no address")

    @staticmethod
    async def _hosts_of(address: TcpAddress) -> list[tuple[str, int]]:
        """Return the addresses of a host, in figures. Raises OSError."""
        with suppress(ValueError):
            ipaddress.ip_address(address.host)
            return [(address.host, address.port)]
        known = await look_up(address.host, address.port)
        return [(str(name[0]), int(name[1])) for *_, name in known]

    def _refuse(self, reason: str) -> Unavailable:
        self._refused = Unavailable(f"{self._address}: {reason}")
        self._refused_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        return self._refused

    def _connect_ended(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # every caller may have gone meanwhile

    def _new_connection(self) -> _Connection:
        return _Connection(str(self._address), self._silence_seconds, self._lost)

    def _lost(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._connection = None
            if self._on_disconnect is not None and not self._closed:
                self._on_disconnect()


class _Call(NamedTuple):
    """A call in flight; `until` is its deadline, on the loop's clock; `lent`: what has the memory it uses."""

    name: str
    until: float
    then: Then
    lent: Request[Any] | memoryview | None


class _Connection(asyncio.BufferedProtocol):
    """One established connection and the calls in flight on it. One timer serves all their deadlines."""

    def __init__(self, address: str, silence_seconds: float, lost: Callable[[_Connection], None]) -> None:
        self._address, self._silence_seconds = address, silence_seconds
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._encoder = Encoder()
        self._decoder = Decoder(Workbench(MAX_ANSWER_BYTES))
        self._pending: dict[int, _Call] = {}
        self._late: dict[int, Request[Any] | memoryview] = {}
        """What calls lend after their deadline: until an answer comes, the server may be at work on it."""
        self._lends = False
        """Whether the server has mapped the lender's memory."""
        self._room_lender: Lender | None = None
        """Whose memory the server has mapped for its answers."""
        self._last_id = 0
        self._sent: dict[int, int] = {}
        """How long each of the long calls is that were sent and have no answer, late ones too."""
        self._unsent: deque[tuple[int, list[Buffer]]] = deque()
        """Those that wait until there are fewer."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._silent_since: float | None = None
        """Since when calls have been waiting without anything coming; None while none waits."""
        self._room: asyncio.Future[None] | None = None
        self._reason = "the connection broke"
        self.stands = False
        self.writable = True
        self._hang_ups = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.stands = True
        endpoint = transport.get_extra_info("socket")
        if endpoint is not None:
            self._hang_ups.register(endpoint.fileno(), select.POLLRDHUP)
            if endpoint.family != socket.AF_UNIX:
                set_up_caller(endpoint)

    def is_open(self) -> bool:
        """Tell whether nothing has been heard of its end, even if the loop has not read that yet."""
        return self.stands and not self._transport.is_closing() and not self._hang_ups.poll(0)

    def connection_lost(self, error: Exception | None) -> None:
        self.stands = False
        self.resume_writing()
        self._lost(self)
        if self._timer is not None:
            self._timer.cancel()
        pending, self._pending = self._pending, {}
        lent = [*self._late.values(), *(call.lent for call in pending.values() if call.lent is not None)]
        if lent:
            self._loop.call_later(LENT_SECONDS, lent.clear)
        for call in pending.values():
            call.then(self._broken())

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

    def begin(self, request: Request[Any], deadline_seconds: float, then: Then) -> None:
        """Send a call; `then` gets what comes of it."""
        if not self.stands:
            then(self._broken())
            return
        lent: Request[Any] | memoryview | None = None
        room = self._room_lender.take(request.room_bytes) if self._room_lender else None
        try:
            if room is not None:
                lent, body = room, self._encoder.body(request.name, [*request.params, room], lent=True)
            elif self._lends and memoryview in map(type, request.params):
                lent, body = request, self._lent_body(request)
            else:
                body = self._body(request)
        except BadRequest as error:
            then(error)
            return
        request_id = self._last_id = (self._last_id + 1) & LARGEST_ID
        now = self._loop.time()
        until = now + deadline_seconds
        if self._silent_since is None:
            self._silent_since = now
        self._pending[request_id] = _Call(request.name, until, then, lent)
        if self._timer is None or until < self._timer_at:
            self._watch(until)
        buffers = self._encoder.addressed(request_id, body)
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        else:
            self._unsent.append((request_id, buffers))
            self._send_long_calls()

    def _send_long_calls(self) -> None:
        """Send those that waited, as far as may be on their way; what is late by now is not sent."""
        while self._unsent:
            request_id, buffers = self._unsent[0]
            if request_id in self._pending:
                size = sum(map(len, buffers))
                if self._sent and sum(self._sent.values()) + size > MOST_SENT_BYTES:
                    return
                self._sent[request_id] = size
                self._transport.writelines(buffers)
            self._unsent.popleft()

    def _body(self, request: Request[Any]) -> list[Buffer]:
        if request.body is None:
            request.body = self._encoder.body(request.name, request.params)
        return request.body

    def _lent_body(self, request: Request[Any]) -> list[Buffer]:
        if request.lent_body is None:
            request.lent_body = self._encoder.body(request.name, request.params, lent=True)
        return request.lent_body

    def offer(self, lender: Lender) -> None:
        """Offer memory to a server of this machine. Until it has taken it, bytes go through the socket."""

        def answered(answer: Any) -> None:
            self._lends = answer is True
            if self._lends:
                self._offer_room()
            else:
                log.info("%s takes no memory: %s", self._address, answer)

        endpoint = self._transport.get_extra_info("socket") if self.stands else None
        if endpoint is not None and endpoint.family == socket.AF_UNIX:
            self.begin(raw_request(LEND, lender.offer), OFFER_SECONDS, answered)

    def _offer_room(self) -> None:
        """Offer memory for answers, of this connection only: what comes there too late harms nobody."""
        if not self.stands or (lender := make_room()) is None:
            return

        def answered(answer: Any) -> None:
            if answer is True:
                self._room_lender = lender
                self._decoder.await_in(lender)

        self.begin(raw_request(LEND_ROOM, lender.offer), OFFER_SECONDS, answered)

    def _watch(self, until: float) -> None:
        """Have the deadlines looked at then."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = until
        self._timer = self._loop.call_at(until, self._look_once_more)

    def _look_once_more(self) -> None:
        """Let what has come be read, and end what is late then. Timers are first when a loop goes on."""
        self._timer = self._loop.call_later(LAST_LOOK_SECONDS, self._end_late_calls)

    def _end_late_calls(self) -> None:
        self._timer = None
        now = self._loop.time()
        for request_id, call in [item for item in self._pending.items() if item[1].until <= now]:
            del self._pending[request_id]
            if call.lent is not None:
                self._late[request_id] = call.lent
            call.then(DeadlineExceeded(f"{call.name}: no answer of {self._address} in time"))
        seconds = self._silence_seconds
        if self._silent_since is not None and now - self._silent_since >= seconds:
            log.warning("gave up the connection to %s: nothing came for %g s", self._address, seconds)
            self.abort("nothing came any more")
        elif self._pending and self._timer is None:
            self._watch(min(call.until for call in self._pending.values()))

    def get_buffer(self, size_hint: int) -> memoryview:
        return self._decoder.room()

    def buffer_updated(self, count: int) -> None:
        self._decoder.received(count)
        try:
            while (message := self._decoder.next()) is not None:
                self._take(message)
        except Malformed as error:
            log.warning("closed the connection to %s: %s", self._address, error)
            self.abort(f"an answer that cannot be read: {error}")
        self._silent_since = self._loop.time() if self._pending else None

    def _take(self, message: list[Any]) -> None:
        kind, request_id, fault, result = message
        if kind != ANSWER or type(request_id) is not int:
            raise Malformed("not an answer")
        call = self._pending.pop(request_id, None)
        if self._sent.pop(request_id, 0):
            self._send_long_calls()
        if call is not None:
            call.then(result if fault is None else error_of(fault))
        else:  # it comes after its deadline
            self._late.pop(request_id, None)

    def _broken(self) -> Unavailable:
        return Unavailable(f"{self._address}: {self._reason}")
