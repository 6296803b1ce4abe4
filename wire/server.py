"""One server process's surface: both encodings on one port, told apart by a connection's first byte.

It listens, tells connections apart, bounds them in number and time, and drains. It must not know
what the methods do. Runs on one event loop; register tables before `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import stat
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire.address import Address, TcpAddress, UnixAddress, from_socket_name, parse_address
from wire.arrivals import SHORT_BYTES
from wire.config import ConfigError
from wire.connections import Connections
from wire.dispatch import Before, Dispatch, Send
from wire.lending import Lender
from wire.messages import Identity
from wire.msgpack_codec import FIRST_BYTE, Workbench
from wire.open_files import most_open_files
from wire.server_msgpack import MsgpackConnection
from wire.shortcut import listen_beside, widen
from wire.tcp import set_up_peer

if TYPE_CHECKING:
    from wire.server_http import HttpConnection, HttpFront

log = logging.getLogger("wire.server")

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MOST_CONNECTIONS = 1024
_BACKLOG = 1024


class Server:
    """One process's methods on one address (and the Unix socket beside it; see wire.shortcut).

    Args:
        identity: who this server is; told to who asks for `GET /`.
        max_message_bytes: the longest request.
        request_seconds: a request must have arrived whole within; also the first of a connection.
        lender: whose memory long byte strings are received into, for those that they are passed on to.

    `address` is where it listens, once it does.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        request_seconds: float = 10.0,
        lender: Lender | None = None,
    ) -> None:
        self.identity = identity
        self.lender = lender
        self.address = ""
        self.max_message_bytes = max_message_bytes
        self.request_seconds = request_seconds
        self.bench = Workbench(max_message_bytes, strict=True)
        self.dispatch = Dispatch()
        self.connections = Connections()
        self.most_connections = min(MOST_CONNECTIONS, most_open_files() // 2)
        self._http: HttpFront | None = None
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._unix_path: Path | None = None

    def register(
        self,
        table: type,
        implementation: object,
        *,
        only: Collection[str] | None = None,
        before: Before | None = None,
    ) -> None:
        """Offer a table's methods (or only some of them), carried out by an object; see Dispatch.register."""
        self.dispatch.register(table, implementation, only, before)

    def forward(self, table: type, send: Send, *, exclude: Collection[str] = ()) -> None:
        """Offer a table's methods by passing raw parameters on to `send(name, params)`."""
        self.dispatch.forward(table, send, exclude=exclude)

    async def start(self, address: str) -> str:
        """Listen; return the real address (of port 0, the one that was picked).

        Raises:
            ConfigError: the address is in use or cannot be had; one line says what to do.
        """
        parsed = parse_address(address)
        listening = _listen(parsed)
        loop = asyncio.get_running_loop()
        if isinstance(parsed, UnixAddress):
            self._unix_path = Path(parsed.path)
            await self._serve_unix(listening)
        else:
            parsed = from_socket_name(listening.getsockname())
            if (beside := listen_beside(parsed)) is not None:  # first: who finds it lacking stays with TCP
                await self._serve_unix(beside)
            self._listeners.append(
                await loop.create_server(lambda: _FirstByte(self), sock=listening, backlog=_BACKLOG)
            )
        self._sweeper = asyncio.create_task(self._sweep_for_ever())
        self.address = str(parsed)
        return self.address

    async def _serve_unix(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._listeners.append(
            await loop.create_unix_server(lambda: _FirstByte(self), sock=listening, backlog=_BACKLOG)
        )

    async def drain(self, seconds: float = 5.0) -> None:
        """Stop accepting, finish the calls in flight (for at most `seconds`), close."""
        if not self._listeners:
            return
        for listener in self._listeners:
            listener.close()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
        ends = [asyncio.create_task(connection.drain()) for connection in self.connections]
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*ends)
                await self.connections.until_none()
        except TimeoutError:
            for connection in self.connections:
                connection.abort("its calls did not end before the server had to")
        if self._http is not None:
            await self._http.close()

    def http_connection(self) -> HttpConnection:
        """Return what serves a connection that speaks HTTP; the first one waits for aiohttp to be loaded."""
        from wire.server_http import HttpConnection, HttpFront

        if self._http is None:
            self._http = HttpFront(self.dispatch, self.identity, self.max_message_bytes, self.request_seconds)
        return HttpConnection(self._http, self.connections)

    async def _sweep_for_ever(self) -> None:
        """End the connections whose request does not arrive, or whose answers are not taken.

        A late look costs a quarter of the time-out.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.request_seconds / 4)
            now = loop.time()
            self.connections.unread.look()
            for connection in self.connections:
                if connection.overdue(now, self.request_seconds):
                    connection.abort(f"half a request for more than {self.request_seconds:g} s")


class _FirstByte(asyncio.BufferedProtocol):
    """A new connection, until its first byte tells what it speaks."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: Any = None
        self._since = asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        most = self._server.most_connections
        if len(self._server.connections) >= most:
            self.abort(f"more than {most} connections")
            return
        self._server.connections.add(self)
        endpoint = transport.get_extra_info("socket")
        if endpoint is not None:
            (widen if endpoint.family == socket.AF_UNIX else set_up_peer)(endpoint)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)

    def get_buffer(self, size_hint: int) -> memoryview:
        return self._server.bench.room[:SHORT_BYTES]

    def buffer_updated(self, count: int) -> None:
        server, data = self._server, self._server.bench.room[:count]
        if data[0] == FIRST_BYTE:
            caller = MsgpackConnection(server.dispatch, server.connections, server.bench, server.lender)
            self._hand_over(caller)
            caller.take_first(data)
        elif ord("A") <= data[0] <= ord("Z"):
            browser = server.http_connection()
            self._hand_over(browser)
            browser.take_first(bytes(data))
        else:
            self.abort(f"its first byte 0x{data[0]:02x} begins neither MessagePack-RPC nor HTTP")

    def _hand_over(self, protocol: MsgpackConnection | HttpConnection) -> None:
        self._server.connections.discard(self)
        protocol.connection_made(self._transport)
        self._transport.set_protocol(protocol)

    def overdue(self, now: float, request_seconds: float) -> bool:
        return now - self._since > request_seconds

    def abort(self, reason: str) -> None:
        log.warning("closed a connection: %s", reason)
        self._transport.abort()

    async def drain(self) -> None:
        self._transport.close()


def _listen(address: Address) -> socket.socket:
    """Return a bound socket. Raises ConfigError when the address cannot be had."""
    try:
        return _listen_unix(address.path) if isinstance(address, UnixAddress) else _listen_tcp(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = (
                "something listens there already: stop it (`ss -ltnp` shows it) or choose another address"
            )
            raise ConfigError(f"{address} is in use; {advice}") from None
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror or error}; choose another one"
        ) from None


def _listen_tcp(address: TcpAddress) -> socket.socket:
    family, kind, protocol, _, name = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(name)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _listen_unix(path: str) -> socket.socket:
    """Bind a Unix socket; one that a killed server left behind is replaced, one that answers is not."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(Path(path).stat().st_mode) and not _answers(path):
                Path(path).unlink()
        listening.bind(path)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True
