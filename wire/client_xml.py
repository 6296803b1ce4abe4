"""The asyncio client's way to call in XML-RPC: aiohttp's kept-alive connections, one call each.

Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from wire import xml_codec
from wire.address import Address, UnixAddress
from wire.client_msgpack import LAST_LOOK_SECONDS, MAX_ANSWER_BYTES
from wire.errors import DeadlineExceeded, Unavailable
from wire.fault_detail import HEADER
from wire.http_answer import HTTP_HEADERS, result_of
from wire.request import Request, Then, failure_of

MOST_CONNECTIONS = 512
"""Each call has one; there are more than one mount may have calls that wait for locks."""
_LONGEST_HEADER_BYTES = 32 * 1024
_READ_BUFFER_BYTES = 2 * 1024 * 1024


class XmlLink:
    """A pool of HTTP connections to one server; see Client for the arguments."""

    def __init__(
        self, address: Address, connect_seconds: float, on_disconnect: Callable[[], None] | None = None
    ) -> None:
        self._address = address
        self._connect_seconds = connect_seconds
        self._on_disconnect = on_disconnect
        self._session: aiohttp.ClientSession | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = False
        self.connected = False
        self._url = f"http://{'localhost' if isinstance(address, UnixAddress) else address}/RPC2"

    def open_connection(self) -> int:
        """Return 0: whether a connection stands is not asked of the kernel here."""
        return 0

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        """Send one call; `then` gets the raw result, or the error. See Client.call."""
        task = asyncio.get_running_loop().create_task(self._call_then(deadline_seconds, request, then))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call_then(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        try:
            answer = await self._call(deadline_seconds, request.name, request.params)
        except Exception as error:
            answer = failure_of(error, request.name)
        then(answer)

    async def _call(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> Any:
        body = xml_codec.pack_request(name, params)
        try:
            async with _deadline(deadline_seconds):
                status, detail, answer = await self._post(body)
        except aiohttp.ConnectionTimeoutError:
            raise self._broke("no connection in time") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: no answer of {self._address} in time") from None
        except aiohttp.ClientConnectorError as error:
            raise self._broke(os.strerror(error.errno) if error.errno else str(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._broke(str(error) or type(error).__name__) from None
        self.connected = True
        return result_of(name, status, detail, answer)

    async def close(self) -> None:
        """Close; calls in flight fail with Unavailable."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _post(self, body: bytes) -> tuple[int, str | None, bytes]:
        if self._closed:
            raise Unavailable(f"{self._address}: this client was closed")
        if self._session is None:
            self._session = self._new_session()
        async with self._session.post(self._url, data=body, headers=HTTP_HEADERS) as response:
            return response.status, response.headers.get(HEADER), await _read_body(response)

    def _new_session(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if isinstance(self._address, UnixAddress):
            connector = aiohttp.UnixConnector(self._address.path, limit=MOST_CONNECTIONS)
        else:
            connector = aiohttp.TCPConnector(limit=MOST_CONNECTIONS, force_close=False)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
            read_bufsize=_READ_BUFFER_BYTES,
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER_BYTES,
            max_field_size=_LONGEST_HEADER_BYTES,
        )

    def _broke(self, reason: str) -> Unavailable:
        was_connected, self.connected = self.connected, False
        if was_connected and self._on_disconnect is not None and not self._closed:
            self._on_disconnect()
        return Unavailable(f"{self._address}: {reason}")


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after so long, once what has come until then is read: see LAST_LOOK_SECONDS."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + LAST_LOOK_SECONDS))
        try:
            yield
        finally:
            timer.cancel()


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body. Raises ClientPayloadError when it is too long, and reads no more of it."""
    chunks: list[bytes] = []
    length = 0
    while chunk := await response.content.readany():
        chunks.append(chunk)
        length += len(chunk)
        if length > MAX_ANSWER_BYTES:
            raise aiohttp.ClientPayloadError(f"an answer of over {MAX_ANSWER_BYTES} bytes")
    return b"".join(chunks)
