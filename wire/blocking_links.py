"""The blocking client's connections: one socket, one call at a time, in either encoding.

A connection belongs to one thread at a time; the pool around it sees to that.
"""

from __future__ import annotations

import http.client
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from wire import xml_codec
from wire.address import Address, TcpAddress, UnixAddress
from wire.client_msgpack import LAST_LOOK_SECONDS, MAX_ANSWER_BYTES
from wire.errors import DeadlineExceeded, Unavailable
from wire.fault_detail import HEADER
from wire.http_answer import HTTP_HEADERS, result_of
from wire.msgpack_codec import ANSWER, Buffer, Decoder, Encoder, Workbench, error_of
from wire.msgpack_long import Malformed
from wire.names import addresses_of
from wire.shortcut import connect_beside
from wire.tcp import set_up_caller

SLOW_SECONDS = 1.0
"""Who waits for an answer looks whether to go on after so long, and then again and again."""
LOOK_SECONDS = 0.1
DUTY_MILLISECONDS = 50
"""A thread that waits longer has no duty any more."""
MOST_ASIDE = 16
"""So many things of its duty a thread does while it waits, before it looks at the deadline again."""
LEAST_CONNECT_SECONDS = 0.001
"""A connection that is there at once is made even after the deadline; 0 would be no limit."""
_CHUNK_BYTES = 1024 * 1024
_SLOW = struct.pack("@ll", int(SLOW_SECONDS), 0)


def connect(address: Address, until: float, connect_seconds: float) -> socket.socket:
    """Return a connected socket.

    Args:
        address: the server's.
        until: the call's deadline, on time.monotonic().
        connect_seconds: the most to wait for the connection.

    Raises:
        Unavailable: the connection was refused, or not established in time.
    """
    until = min(until, time.monotonic() + connect_seconds)
    try:
        if isinstance(address, UnixAddress):
            return _connect_to(socket.AF_UNIX, address.path, until)
        if (beside := connect_beside(address)) is not None:
            return beside
        connected = _connect_by_tcp(address, until)
        set_up_caller(connected)
        return connected
    except OSError as error:
        raise Unavailable(f"{address}: {error.strerror or error}") from None


def _connect_by_tcp(address: TcpAddress, until: float) -> socket.socket:
    """Return a socket connected to the first of a host's addresses that takes it. Raises OSError.

    One that says nothing leaves time for the others.
    """
    known = addresses_of(address.host, address.port, until)
    for left, (family, _, _, _, name) in zip(range(len(known), 0, -1), known, strict=True):
        now = time.monotonic()
        try:
            return _connect_to(family, name, now + (until - now) / left)
        except OSError:
            if left == 1:
                raise
    raise OSError("it has no address")


def _connect_to(family: int, name: Any, until: float) -> socket.socket:
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        connected.settimeout(max(LEAST_CONNECT_SECONDS, until - time.monotonic()))
        connected.connect(name)
    except OSError:
        connected.close()
        raise
    return connected


def _failure_of(error: OSError, name: str, address: Address) -> Unavailable | DeadlineExceeded:
    """Return what a call's failure is to its caller: a time-out with a number is the kernel's."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return DeadlineExceeded(f"{name}: no answer of {address} in time")
    return Unavailable(f"{address}: {error.strerror or error or type(error).__name__}")


def is_quiet(connected: socket.socket) -> bool:
    """Tell whether an idle connection still stands: the peer has neither closed it nor sent anything.

    The socket must not block.
    """
    try:
        connected.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Duty(Protocol):
    """What a thread has to do beside its calls, and another can do as well."""

    def descriptor(self) -> int:
        """Return what becomes readable when there is something to do; -1: this thread has no duty."""

    def pass_on(self) -> None:
        """Have another thread do it, if this one has the duty."""

    def take_aside(self) -> bool:
        """Do what there is to do, or pass it on if it takes time; return whether this thread has the duty."""


class NoDuty:
    """A thread has nothing to do but its calls."""

    def descriptor(self) -> int:
        return -1

    def pass_on(self) -> None:
        pass

    def take_aside(self) -> bool:
        return False


class Waiting(NamedTuple):
    """While a call waits: `look` is called now and then, and raises Interrupted to end it."""

    look: Callable[[], None] = lambda: None
    duty: Duty = NoDuty()


JUST_WAITING = Waiting()


class MsgpackSocket:
    """A MessagePack-RPC connection. Who waits does so in recv(2) for SLOW_SECONDS, and then in poll(2)."""

    def __init__(self, address: Address, connect_seconds: float, waiting: Waiting, until: float) -> None:
        self._address, (self._look, self._duty) = address, waiting
        self._socket = connect(address, until, connect_seconds)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SLOW)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._readable_or_duty: select.poll | None = None
        self._writable = select.poll()
        self._writable.register(self._socket, select.POLLOUT)
        self._encoder = Encoder()
        self._decoder = Decoder(Workbench(MAX_ANSWER_BYTES))
        self._request_id = 0

    def alive(self) -> bool:
        return not self._readable.poll(0)  # is_quiet without an exception

    def close(self) -> None:
        self._socket.close()

    def call(self, until: float, name: str, params: Sequence[Any]) -> Any:
        """Send one call and wait for its answer. After a TransportError the connection is of no more use."""
        self._request_id = request_id = (self._request_id + 1) & 0xFFFF
        buffers = self._encoder.request(request_id, name, params)
        try:
            self._send(buffers, until)
            self._do_duty()
            kind, answered, fault, result = self._receive(until)
        except OSError as error:
            raise _failure_of(error, name, self._address) from None
        except Malformed as error:
            raise Unavailable(f"{self._address}: an answer that cannot be read: {error}") from None
        if kind != ANSWER or answered != request_id:
            raise Unavailable(f"{self._address}: an answer to no question")
        if fault is not None:
            raise error_of(fault)
        return result

    def _send(self, buffers: list[Buffer], until: float) -> None:
        views = [memoryview(buffer) for buffer in buffers]
        while True:
            try:
                sent = self._socket.sendmsg(views, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(self._writable, until, SLOW_SECONDS)
                continue
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if not views:
                return
            views[0] = views[0][sent:]

    def _do_duty(self) -> None:
        """Keep a duty until the answer comes, or until there is something to do that takes time."""
        descriptor = self._duty.descriptor()
        if descriptor < 0:
            return
        poll = self._readable_or_duty
        if poll is None:
            poll = self._readable_or_duty = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.register(descriptor, select.POLLIN)
        for _ in range(MOST_ASIDE):
            ready = dict(poll.poll(DUTY_MILLISECONDS))
            if self._socket.fileno() in ready:
                return
            if not ready:
                break
            if not self._duty.take_aside():
                return
        self._duty.pass_on()

    def _receive(self, until: float) -> list[Any]:
        while (message := self._decoder.next()) is None:
            count = self._receive_some(until)
            if not count:
                raise ConnectionResetError("the server closed the connection")
            self._decoder.received(count)
        return message

    def _receive_some(self, until: float) -> int:
        seconds = SLOW_SECONDS
        if until - time.monotonic() > SLOW_SECONDS:
            try:
                return self._socket.recv_into(self._decoder.room())
            except BlockingIOError:
                self._look()
                seconds = LOOK_SECONDS
        self._wait(self._readable, until, seconds)
        return self._socket.recv_into(self._decoder.room())

    def _wait(self, poll: select.poll, until: float, seconds: float) -> None:
        """Wait until the socket is ready, and `look` after so long, and then again and again.

        Raises:
            TimeoutError: it is the deadline.
            Interrupted: `look` raises it.
        """
        while (remaining_seconds := until - time.monotonic()) > 0:
            if poll.poll(min(seconds, remaining_seconds) * 1000):
                return
            self._look()
            seconds = LOOK_SECONDS
        raise TimeoutError


class _TimedSocket(socket.socket):
    """A connected socket that raises TimeoutError at a deadline, however little comes or goes at a time.

    Who was stopped itself until after the deadline reads first what has come meanwhile.
    """

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(fileno=connected.detach())
        self._until, self._is_last_look = 0.0, False

    def begin(self, until: float) -> None:
        """Set the deadline of what follows, on time.monotonic(). Raises TimeoutError: it is over."""
        self._until, self._is_last_look = until, False
        if until <= time.monotonic():
            raise TimeoutError

    def sendall(self, *data: Any) -> None:
        self._limit()
        super().sendall(*data)

    def recv_into(self, *place: Any) -> int:
        self._limit()
        return super().recv_into(*place)

    def _limit(self) -> None:
        now = time.monotonic()
        if now >= self._until and not self._is_last_look:
            self._until, self._is_last_look = now + LAST_LOOK_SECONDS, True
        if now >= self._until:
            raise TimeoutError
        self.settimeout(self._until - now)


class XmlSocket:
    """An HTTP connection, kept alive. A call that waits for an answer cannot be interrupted."""

    def __init__(self, address: Address, connect_seconds: float, waiting: Waiting, until: float) -> None:
        self._duty = waiting.duty
        self._address = address
        self._http = http.client.HTTPConnection("localhost")
        self._http.auto_open = 0
        if not isinstance(address, UnixAddress):
            self._http.host, self._http.port = address.host, address.port
        self._http.sock = self._socket = _TimedSocket(connect(address, until, connect_seconds))

    def alive(self) -> bool:
        if self._http.sock is None:
            return False
        self._socket.settimeout(0)
        return is_quiet(self._socket)

    def close(self) -> None:
        self._http.close()

    def call(self, until: float, name: str, params: Sequence[Any]) -> Any:
        """Send one call and wait for its answer. After a TransportError the connection is of no more use."""
        body = xml_codec.pack_request(name, params)
        try:
            self._socket.begin(until)
            self._http.request("POST", "/RPC2", body, HTTP_HEADERS)
            self._duty.pass_on()
            response = self._http.getresponse()
            answer = self._read_body(response)
        except OSError as error:
            raise _failure_of(error, name, self._address) from None
        except http.client.HTTPException as error:
            raise Unavailable(f"{self._address}: {error or type(error).__name__}") from None
        return result_of(name, response.status, response.headers.get(HEADER), answer)

    @staticmethod
    def _read_body(response: http.client.HTTPResponse) -> bytes:
        """Return an answer's body. Raises TimeoutError at the deadline; HTTPException."""
        chunks: list[bytes] = []
        length = 0
        while chunk := response.read1(_CHUNK_BYTES):
            chunks.append(chunk)
            length += len(chunk)
            if length > MAX_ANSWER_BYTES:
                raise http.client.HTTPException("an answer that is too long")
        if response.length:
            raise http.client.HTTPException("the connection broke within an answer")
        response.close()  # so that the connection takes the next request
        return b"".join(chunks)
