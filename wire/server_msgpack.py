"""A server's end of one MessagePack-RPC connection.

Calls are pipelined: what has its result at once is answered at once, the rest when it is done, out of order.
It must not know what the methods do. Runs on the server's event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple

from wire.arrivals import SHORT_BYTES, call_bytes
from wire.connections import Connections, has_more
from wire.dispatch import Dispatch, Entry, as_quorumfs_error
from wire.errors import Draining, QuorumfsError
from wire.lending import CODE, LEND, LEND_ROOM, ROOM_CODE, Borrowed, Lender
from wire.msgpack_codec import LARGEST_ID, REQUEST, ROOM_BYTES, Decoder, Encoder, Workbench
from wire.msgpack_long import LONG_BYTES, Malformed

log = logging.getLogger("wire.server")

MOST_CALLS_IN_FLIGHT = 256
_OFFERS = (LEND, LEND_ROOM)
_STOPPING = "the server is stopping"


class _Call(NamedTuple):
    """A call that was read; `message_bytes`: how long it was."""

    request_id: int
    entry: Entry
    arguments: list[Any]
    message_bytes: int


class _Postponed(NamedTuple):
    """A call whose answer may be long, and waits for room to be made in."""

    call: _Call
    held_bytes: int


class MsgpackConnection(asyncio.BufferedProtocol):
    """One connection. Reading stops while too many calls are in flight or the peer does not read."""

    def __init__(
        self,
        dispatch: Dispatch,
        connections: Connections,
        bench: Workbench,
        lender: Lender | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._connections = connections
        self._arrivals = connections.arrivals
        self._has_room = True
        """Whether the request that is arriving, or the next one, need not wait for others."""
        self._decoder = Decoder(bench, lender=lender, may_hold=self._may_hold)
        self._encoder = Encoder(bench.packing)
        self._loop = asyncio.get_running_loop()
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._waiting_calls = 0
        """How many of them wait for other callers."""
        self._making = connections.making
        self._postponed: deque[_Postponed] = deque()
        self._written_bytes = 0
        """How long the answers are of which something is to be sent still."""
        self._peer_reads = True
        self._reading = True
        self._draining = False
        self._is_lost = False
        self._peer_has_ended = False
        """Whether the peer sends no more; what it has sent before is answered."""
        self._partial_since: float | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._reading = False
        self._partial_since = None
        self._is_lost = True
        self._decoder.end()
        self._connections.unread.end(self)
        self._making.leave(self)
        while self._postponed:
            self._arrivals.hold(-self._postponed.popleft().held_bytes)
        self._arrivals.admit(self, 0)
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        """A lost connection counts as open until its calls have ended: they still use what the server has."""
        if self._is_lost and not self._in_flight:
            self._connections.discard(self)

    def get_buffer(self, size_hint: int) -> memoryview:
        return self._decoder.room(SHORT_BYTES if self._arrivals.is_full else ROOM_BYTES)

    def buffer_updated(self, count: int) -> None:
        self._decoder.received(count)
        self._answer_what_arrived()
        self._decoder.leave()
        if count == ROOM_BYTES and self._reading:
            self._let_others_go_on()

    def _let_others_go_on(self) -> None:
        """Read what is next at the loop's next turn: one busy peer would have all of this one."""
        self._reading = False
        self._transport.pause_reading()
        self._loop.call_soon(self._read_on)

    def eof_received(self) -> bool:
        """Return whether the connection stays open for answers."""
        self._peer_has_ended = True
        return self._is_busy()

    def _is_busy(self) -> bool:
        return bool(self._in_flight or self._postponed)

    def take_first(self, data: memoryview) -> None:
        """Take what arrived before it was known what the connection speaks: at most ROOM_BYTES."""
        self._decoder.room()[: len(data)] = data
        self.buffer_updated(len(data))

    def pause_writing(self) -> None:
        self._peer_reads = False
        self._making.leave(self)
        self._connections.unread.begin(self, self._transport, self._written_bytes)

    def resume_writing(self) -> None:
        self._peer_reads = True
        self._connections.unread.end(self)
        self.make_on()

    def make_on(self) -> None:
        """Begin what was postponed, as far as there is room now, and read on."""
        while self._postponed and self._may_make(self._postponed[0].call.entry.answer_bytes):
            call, held_bytes = self._postponed.popleft()
            self._arrivals.hold(-held_bytes)
            self._begin(call)
        self._read_on()

    def read_on(self) -> None:
        self._has_room = True
        self._read_on()

    def has_more(self) -> bool:
        return has_more(self._transport)

    def overdue(self, now: float, request_seconds: float) -> bool:
        return self._partial_since is not None and now - self._partial_since > request_seconds

    def abort(self, reason: str) -> None:
        log.warning("closed a MessagePack-RPC connection: %s", reason)
        self._transport.abort()

    async def drain(self) -> None:
        self._draining = True
        self._making.leave(self)
        while self._postponed:
            call, held_bytes = self._postponed.popleft()
            self._arrivals.hold(-held_bytes)
            self._send_error(call.request_id, Draining(_STOPPING))
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        self._transport.close()

    def _read_on(self) -> None:
        if not self._reading and self._may_read() and not self._transport.is_closing():
            self._reading = True
            self._answer_what_arrived()
            self._decoder.leave()
            if self._reading:
                self._transport.resume_reading()

    def _may_read(self) -> bool:
        if not self._peer_reads or not self._has_room:
            return False
        calls = len(self._in_flight) - self._waiting_calls + len(self._postponed)
        if calls and self._arrivals.is_full:
            self._has_room = self._arrivals.admit_more(self)
        return self._has_room and calls < MOST_CALLS_IN_FLIGHT

    def _answer_what_arrived(self) -> None:
        decoder = self._decoder
        try:
            while self._may_read():
                if (message := decoder.next()) is None:
                    if not self._has_room or not self._may_hold(decoder.announced_bytes):
                        break
                    self._note_partial(decoder.pending_bytes)
                    return
                self._partial_since = None
                self._arrivals.admit(self, 0)
                self._carry_out(message)
        except Malformed as error:
            self.abort(str(error))
            return
        self._partial_since = None  # the wait is ours, not the peer's
        self._reading = False
        self._transport.pause_reading()

    def _may_hold(self, size: int) -> bool:
        """Tell whether a request of so many bytes may be read; see wire.arrivals."""
        self._has_room = self._arrivals.admit(self, size)
        return self._has_room

    def _note_partial(self, pending_bytes: int) -> None:
        if not pending_bytes:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = self._loop.time()

    def _carry_out(self, message: list[Any]) -> None:
        kind, request_id, name, params = message
        if kind != REQUEST or type(request_id) is not int or not 0 <= request_id <= LARGEST_ID:
            raise Malformed("not a request")
        try:
            if self._draining:
                raise Draining(_STOPPING)
            if name in _OFFERS:
                self._borrow(CODE if name == LEND else ROOM_CODE, params)
                self._send(request_id, True)
                return
            entry = self._dispatch.find(name)
            call = _Call(request_id, entry, entry.arguments(params), self._decoder.message_bytes)
            if entry.answer_bytes and (self._postponed or not self._may_make(entry.answer_bytes)):
                held_bytes = call_bytes(call.message_bytes, call.arguments)
                self._postponed.append(_Postponed(call, held_bytes))
                self._arrivals.hold(held_bytes)
            else:
                self._begin(call)
        except Exception as error:
            self._send_error(request_id, as_quorumfs_error(error, name))

    def _may_make(self, answer_bytes: int) -> bool:
        """Tell whether a long answer may be made now; what nobody reads need not be."""
        return self._peer_reads and self._making.begin(self, answer_bytes)

    def _begin(self, call: _Call) -> None:
        """Carry out a call, for whose answer there is room."""
        entry = call.entry
        try:
            result = entry.function(*call.arguments)
            if isinstance(result, CoroutineType):
                result = self._loop.create_task(result)
            if isinstance(result, asyncio.Future):
                self._in_flight.add(result)
                if entry.waits_for_callers and self._arrivals.begin_waiting():
                    self._waiting_calls += 1
                    result.add_done_callback(partial(self._answer_one_that_waited, call.request_id, entry))
                    return
                held_bytes = call_bytes(call.message_bytes, call.arguments)
                self._arrivals.hold(held_bytes)
                result.add_done_callback(partial(self._answer_later, call.request_id, entry, held_bytes))
                return
            self._send(call.request_id, result)
        except Exception as error:
            self._send_error(call.request_id, as_quorumfs_error(error, entry.name))
        if entry.answer_bytes:
            self._making.end(self, entry.answer_bytes)

    def _borrow(self, code: int, params: Any) -> None:
        memory = Borrowed(self._transport.get_extra_info("socket"), params)
        self._decoder.borrow(memory, code)
        if code == ROOM_CODE:
            self._encoder.room = memory

    def _answer_one_that_waited(self, request_id: int, entry: Entry, done: asyncio.Future[Any]) -> None:
        self._waiting_calls -= 1
        self._arrivals.end_waiting()
        self._answer_later(request_id, entry, 0, done)

    def _answer_later(
        self, request_id: int, entry: Entry, held_bytes: int, done: asyncio.Future[Any]
    ) -> None:
        self._in_flight.discard(done)
        self._arrivals.hold(-held_bytes)
        self._send_outcome(request_id, entry, done)
        if entry.answer_bytes:
            self._making.end(self, entry.answer_bytes)
        self._leave_if_done()
        if self._peer_has_ended and not self._is_busy():
            self._transport.close()  # writes out first what was answered
        elif self._postponed:
            self.make_on()
        elif not self._reading and len(self._in_flight) == self._waiting_calls:
            self.read_on()  # one call may go on whatever others have
        elif not self._reading:
            self._read_on()

    def _send_outcome(self, request_id: int, entry: Entry, done: asyncio.Future[Any]) -> None:
        """Answer a call that has ended, unless the server stops.

        Nothing is raised that `done` keeps: it would keep this frame, so `done` and what the call had,
        until the collector comes.
        """
        if done.cancelled():
            return
        if (failure := done.exception()) is not None:
            self._send_error(request_id, as_quorumfs_error(failure, entry.name))
            return
        try:
            self._send(request_id, done.result())
        except Exception as error:
            self._send_error(request_id, as_quorumfs_error(error, entry.name))

    def _send(self, request_id: int, result: Any) -> None:
        buffers = self._encoder.answer(request_id, result)
        if self._transport.is_closing():
            return
        if len(buffers) == 1 and len(buffers[0]) < LONG_BYTES and self._peer_reads:
            self._transport.write(buffers[0])
            return
        if not self._transport.get_write_buffer_size():
            self._written_bytes = 0
        self._written_bytes += sum(map(len, buffers))
        self._transport.writelines(buffers)
        if not self._peer_reads:
            self._connections.unread.more(self, self._written_bytes)

    def _send_error(self, request_id: int, error: QuorumfsError) -> None:
        if not self._transport.is_closing():
            self._transport.writelines(self._encoder.error(request_id, error))
