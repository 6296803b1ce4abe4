"""A server's end of HTTP: XML-RPC at POST /RPC2 (or /), and a few words at GET /.

HTTP itself is aiohttp's business. What a web page could send is refused: a request with an Origin
header, or one that is not declared as XML. It must not know what the methods do. Runs on the
server's event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from wire import xml_codec
from wire.arrivals import SHORT_BYTES, call_bytes
from wire.connections import Connections, has_more
from wire.dispatch import Dispatch, as_quorumfs_error
from wire.errors import BadRequest, Draining, QuorumfsError, Unavailable, to_fault
from wire.fault_detail import HEADER, pack_detail
from wire.messages import Identity

log = logging.getLogger("wire.http")

_PATHS = ("/RPC2", "/")
"""A stock ServerProxy whose address ends in a slash posts to /, as the old test scripts do."""
_XML_TYPES = frozenset({"text/xml", "application/xml"})
_BODY_ROOM_BYTES = 256 * 1024
"""What is received at once of a long body."""
_FOR_A_LOOK, _FOR_ROOM = "for a look", "for room"
"""Why we do not read on."""
_IDLE_SECONDS = 300.0
"""An HTTP connection may be silent so long between two requests; clients connect again."""


class HttpFront:
    """What all HTTP connections of a server share: the answers to requests."""

    def __init__(
        self, dispatch: Dispatch, identity: Identity, max_message_bytes: int, request_seconds: float
    ) -> None:
        self._dispatch = dispatch
        self._identity = identity
        self._max_message_bytes = max_message_bytes
        self.request_seconds = request_seconds
        self.room = memoryview(bytearray(_BODY_ROOM_BYTES))
        """Where what comes is received, by whichever connection."""
        self.draining = False
        self.handlers: dict[Any, HttpConnection] = {}  # by aiohttp's handler, while open
        self.web_server = web.Server(
            self._respond,
            logger=_OneLine(log, {}),
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=1.0,
        )

    async def close(self) -> None:
        """End all connections that are left."""
        await self.web_server.shutdown(timeout=0.1)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection: HttpConnection | None = self.handlers.get(request.protocol)
        if connection is not None:
            connection.request_began()
        try:
            response = await self._route(request, connection)
        finally:
            if connection is not None:
                connection.request_ended()
        if connection is not None:
            connection.note_answer(response)
        if self.draining or (connection is not None and connection.peer_has_ended):
            response.force_close()
        return response

    async def _route(self, request: web.BaseRequest, connection: HttpConnection | None) -> web.StreamResponse:
        if "Origin" in request.headers:
            return _refusal(403, "a web page does not call this server")
        if request.method == "GET" and request.path == "/":
            return web.Response(text=self._about())
        if request.path not in _PATHS:
            return _refusal(404, "XML-RPC is at /RPC2")
        if request.method != "POST":
            return _refusal(405, "XML-RPC is a POST", {"Allow": "POST"})
        if request.content_type not in _XML_TYPES or "Content-Encoding" in request.headers:
            return _refusal(415, "a request is plain text/xml")
        if (request.content_length or 0) > self._max_message_bytes:
            return _refusal(413, f"a request has at most {self._max_message_bytes} bytes")
        if connection is not None:
            length = request.content_length
            await connection.until_room(self._max_message_bytes if length is None else length)
        try:
            body = await self._read_body(request)
        except (ConnectionError, web.RequestPayloadError) as error:
            error.__traceback__ = None  # aiohttp keeps the error, and that what was read
            return _refusal(400, "the request broke off")
        if connection is not None:
            connection.request_arrived()
        if body is None:
            return _refusal(413, f"a request has at most {self._max_message_bytes} bytes")
        try:
            name, params = xml_codec.unpack_request(body)
        except xml_codec.Malformed as error:
            log.warning("refused an XML-RPC request: %s", error)
            return _fault(BadRequest(f"not XML-RPC as it is read here: {error}"), close=True)
        if connection is not None:
            connection.request_read(call_bytes(len(body), params))
        del body
        return await self._answer(name, params, connection)

    async def _read_body(self, request: web.BaseRequest) -> bytes | None:
        """Return the body, or None if it is too long."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        chunks: list[bytes] = []
        length = 0
        while chunk := await request.content.readany():
            chunks.append(chunk)
            length += len(chunk)
            if length > self._max_message_bytes:
                return None
        return b"".join(chunks)

    async def _answer(self, name: str, params: list[Any], connection: HttpConnection | None) -> web.Response:
        try:
            if self.draining:
                raise Draining("the server is stopping")
            if connection is not None:
                await connection.until_made(self._dispatch.find(name).answer_bytes)
            return _xml(xml_codec.pack_answer(await self._dispatch.call(name, params)))
        except Exception as error:
            return _fault(as_quorumfs_error(error, name))

    def _about(self) -> str:
        kind, cluster, number, _ = self._identity
        return (
            f"quorumfs {kind} {number} of cluster {cluster}.\n"
            "Its methods are XML-RPC at POST /RPC2 (system.listMethods tells them), and MessagePack-RPC on "
            "the same port.\n"
        )


class HttpConnection(asyncio.BufferedProtocol):
    """Hands one connection's events to aiohttp, and watches that each request arrives in time."""

    def __init__(self, front: HttpFront, connections: Connections) -> None:
        self._front = front
        self._connections = connections
        self._handler = front.web_server()
        self._loop = asyncio.get_running_loop()
        self._partial_since: float | None = None
        self._arrived = False
        self._more_arrived = False
        self._is_lost = False
        self._arrivals = connections.arrivals
        self._arriving_bytes = 0
        """How long the request is whose body may be read."""
        self._held_bytes = 0
        """How long the request is that is being carried out."""
        self._making = connections.making
        self._made_bytes = 0
        """How long the answer may be that is being made."""
        self._answer_bytes = 0
        """How long the last answer is."""
        self._room: asyncio.Future[None] | None = None
        """While its request, or the answer to it, waits for those of others."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.peer_has_ended = False
        """Whether the peer sends no more; what it has sent before is answered."""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = _Transport(transport)
        self._connections.add(self)
        self._front.handlers[self._handler] = self
        self._handler.connection_made(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._partial_since = None
        self._is_lost = True
        self._arrivals.admit(self, 0)
        self._making.leave(self)
        self._connections.unread.end(self)
        self.read_on()
        self._leave_if_done()
        self._front.handlers.pop(self._handler, None)
        self._handler.connection_lost(error)

    def _leave_if_done(self) -> None:
        """A lost connection counts as open until its call has ended: it still uses what the server has."""
        if self._is_lost and self._idle.is_set():
            self._connections.discard(self)

    def get_buffer(self, size_hint: int) -> memoryview:
        """Little is received before it is known how long the request is, and whether there is room."""
        return self._front.room if self._arriving_bytes else self._front.room[:SHORT_BYTES]

    def buffer_updated(self, count: int) -> None:
        if count == SHORT_BYTES and not self._arriving_bytes:  # before more of it comes we look what it is
            self._transport.stop(_FOR_A_LOOK)
            self._loop.call_soon(self._transport.go_on, _FOR_A_LOOK)
        self.take_first(bytes(self._front.room[:count]))

    def take_first(self, data: bytes) -> None:
        """Take what arrived; at first, before it was known what the connection speaks."""
        if self._arrived:
            self._more_arrived = True
        elif self._room is None:
            if self._partial_since is None:
                self._partial_since = self._loop.time()
            self._arrivals.admit(self, self._arriving_bytes)
        self._handler.data_received(data)

    def eof_received(self) -> bool:
        """Return whether the connection stays open for an answer: a request has come, all of it or a part."""
        self.peer_has_ended = True
        self._handler.eof_received()
        return self._partial_since is not None or not self._idle.is_set()

    def pause_writing(self) -> None:
        self._connections.unread.begin(self, self._transport, self._answer_bytes)
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._connections.unread.end(self)
        self._handler.resume_writing()

    def request_began(self) -> None:
        """Note that a request's head has arrived."""
        self._idle.clear()

    async def until_room(self, length: int) -> None:
        """Wait until a request's body of so many bytes may be read."""
        while not self._is_lost and not self._arrivals.admit(self, length):
            self._partial_since = None  # the wait is ours, not the peer's
            self._transport.stop(_FOR_ROOM)
            self._room = self._loop.create_future()
            await self._room
            self._room = None
            self._partial_since = self._loop.time()
            self._transport.go_on(_FOR_ROOM)
        self._arriving_bytes = length

    async def until_made(self, answer_bytes: int) -> None:
        """Wait until an answer of at most so many bytes may be made. Raises Unavailable: nobody wants it."""
        if not answer_bytes:
            return
        while not self._making.begin(self, answer_bytes):
            self._room = self._loop.create_future()
            await self._room
            self._room = None
            if self._is_lost:
                raise Unavailable("the connection was closed")
        self._made_bytes = answer_bytes

    def make_on(self) -> None:
        self.read_on()

    def has_more(self) -> bool:
        return has_more(self._transport)

    def read_on(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def request_arrived(self) -> None:
        """Note that a request has arrived whole: from now on the peer waits for us."""
        self._partial_since = None
        self._arrived = True
        self._arrivals.admit(self, 0)
        self._held_bytes = self._arriving_bytes
        self._arriving_bytes = 0
        self._arrivals.hold(self._held_bytes)

    def request_read(self, size: int) -> None:
        """Note how much memory the call takes that the request is."""
        self._arrivals.hold(size - self._held_bytes)
        self._held_bytes = size

    def request_ended(self) -> None:
        """Note that a request is answered; what came meanwhile begins the next one."""
        self._partial_since = self._loop.time() if self._more_arrived and not self._is_lost else None
        self._arrived = self._more_arrived = False
        self._arrivals.admit(self, 0)
        self._arrivals.hold(-self._held_bytes)
        if self._made_bytes:
            self._making.end(self, self._made_bytes)
        self._arriving_bytes = self._held_bytes = self._made_bytes = 0
        self._idle.set()
        self._leave_if_done()

    def note_answer(self, response: web.StreamResponse) -> None:
        """Note what will be sent now."""
        self._answer_bytes = response.content_length or 0

    def overdue(self, now: float, request_seconds: float) -> bool:
        return self._partial_since is not None and now - self._partial_since > request_seconds

    def abort(self, reason: str) -> None:
        log.warning("closed an HTTP connection: %s", reason)
        self._transport.abort()

    async def drain(self) -> None:
        self._front.draining = True
        await self._idle.wait()
        self._handler.close()
        self._transport.close()  # writes out first what was answered


class _Transport:
    """A connection as aiohttp has it, which is read while neither it nor we want it to wait."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._reasons: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self.stop("for aiohttp")

    def resume_reading(self) -> None:
        self.go_on("for aiohttp")

    def stop(self, reason: str) -> None:
        """Read no more until all who said so have said to go on."""
        self._reasons.add(reason)
        self._transport.pause_reading()

    def go_on(self, reason: str) -> None:
        """Read again, as far as it goes for this reason."""
        self._reasons.discard(reason)
        if not self._reasons and not self._transport.is_closing():
            self._transport.resume_reading()


class _OneLine(logging.LoggerAdapter[logging.Logger]):
    """Logs without tracebacks: a garbage request is the peer's mistake, not a defect."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        error = kwargs.pop("exc_info", None)
        if isinstance(error, BaseException):
            msg, args = f"{msg}: %.200r", (*args, error)
        super().log(logging.WARNING if error else level, msg, *args, **kwargs)


class _Answer(web.Response):
    """A response that leaves its body to the transport: aiohttp keeps a connection's last one for ever."""

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self.body = None


def _xml(body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return _Answer(body=body, content_type="text/xml", headers=headers)


def _fault(error: QuorumfsError, close: bool = False) -> web.Response:
    code, message, detail = to_fault(error)
    headers = {HEADER: pack_detail(detail)} if detail else None
    response = _xml(xml_codec.pack_fault(code, message), headers)
    if close:
        response.force_close()
    return response


def _refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    log.warning("refused an HTTP request: %s", reason)
    response = web.Response(status=status, text=reason + "\n", headers=headers)
    response.force_close()
    return response
