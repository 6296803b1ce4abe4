"""MessagePack-RPC messages in and out: the one module that knows the serializer.

A request is [0, id, method, params], an answer [1, id, error, result], an error [fault code,
message, detail]. Everything is bounded before it is read. An Encoder or Decoder belongs to one
thread at a time. Sources: https://github.com/msgpack/msgpack/blob/master/spec.md and
https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from wire.errors import BadRequest, QuorumfsError, from_fault, to_fault
from wire.lending import PLACE_BYTES, ROOM_CODE, Borrowed, Lender
from wire.msgpack_long import (
    LONG_BYTES,
    LONGEST_ARRAY,
    LONGEST_MAP,
    PLACEHOLDER_BYTES,
    LongMessage,
    Malformed,
    MayHold,
    always,
)

FIRST_BYTE = 0x94
"""Every message is an array of four: this byte begins it, and tells it from HTTP."""

REQUEST, ANSWER = 0, 1
LARGEST_ID = 2**32 - 1
ROOM_BYTES = 64 * 1024
"""What is received at once, but for long byte strings."""

Buffer = bytes | bytearray | memoryview

_FEW_ITEMS = 64
_PACKER_BYTES = 64 * 1024
"""What a packer may keep from one message to the next."""
BYTES_A_VALUE = 16
"""A message has at most one value for so many of the bytes that it may have: one byte can be a value that
takes 64 bytes of memory."""


_PlaceOf = Callable[[Buffer], bytes | None]
"""Returns what stands for bytes in a message, None if they have to be in it."""


class Encoder:
    """Packs messages. Long byte strings are handed through, not copied into the message.

    Attributes:
        room: memory of the caller: of answers that lie there only the place is sent.
    """

    def __init__(self) -> None:
        self.room: Borrowed | None = None
        self._renew_packer()

    def _renew_packer(self) -> None:
        self._packer = msgpack.Packer(unicode_errors="backslashreplace", buf_size=_PACKER_BYTES)

    def request(self, request_id: int, method: str, params: Sequence[Any]) -> list[Buffer]:
        """Return the buffers of a request, to be sent one after the other.

        Raises:
            BadRequest: a parameter cannot cross the wire.
        """
        return self.addressed(request_id, self.body(method, params))

    def body(self, method: str, params: Sequence[Any], *, lent: bool = False) -> list[Buffer]:
        """Return what a request is but for its id. Raises BadRequest as `request`.

        Args:
            method: its name.
            params: its parameters.
            lent: whether the server has mapped the lender's memory, so that it is only told where bytes are.
        """
        try:
            return self._pack(self._packer.pack(method), params, Lender.place_of if lent else None)
        except _UNPACKABLE as error:
            raise BadRequest(f"{method}: a parameter cannot be sent: {error}") from None

    def addressed(self, request_id: int, body: list[Buffer]) -> list[Buffer]:
        """Return the buffers of a request of a body that was packed before."""
        return [b"\x94\x00" + self._packer.pack(request_id) + body[0], *body[1:]]

    def answer(self, request_id: int, result: Any) -> list[Buffer]:
        """Return the buffers of a result. Raises TypeError, ValueError or OverflowError if it cannot."""
        place_of = self.room.place_of if self.room else None
        return self._pack(b"\x94\x01" + self._packer.pack(request_id) + b"\xc0", result, place_of)

    def error(self, request_id: int, error: QuorumfsError) -> list[Buffer]:
        """Return the buffers of an error. A detail that cannot cross is left out."""
        fault = to_fault(error)
        try:
            return [self._packer.pack((ANSWER, request_id, fault, None))]
        except _UNPACKABLE:
            return [self._packer.pack((ANSWER, request_id, (fault[0], str(fault[1]), {}), None))]

    def _pack(self, head: bytes, value: Any, place_of: _PlaceOf | None) -> list[Buffer]:
        """Return the buffers of what was packed already and a value after it."""
        if not _is_bulky(value, 2):
            packed = self._packer.pack(value)
            return [head + packed] if len(packed) < LONG_BYTES else [head, self._long(packed)]
        buffers: list[Buffer] = []
        rest = self._pack_bulky(value, 2, bytearray(head), buffers, place_of)
        if rest:
            buffers.append(rest)
        return buffers

    def _long(self, packed: bytes) -> bytes:
        """Return what was packed; a packer keeps the memory of the longest value that it has packed."""
        if len(packed) > _PACKER_BYTES:
            self._renew_packer()
        return packed

    def _pack_bulky(
        self, value: Any, depth: int, head: bytearray, buffers: list[Buffer], place_of: _PlaceOf | None
    ) -> bytearray:
        """Append the buffers of a value; return the one that is still open to be added to."""
        kind = type(value)
        if kind in _BYTES and len(value) >= LONG_BYTES:
            if place_of and (place := place_of(value)) is not None:
                return head + place
            head += b"\xc6" + len(value).to_bytes(4, "big")
            buffers += (head, value)
            return bytearray()
        if depth == 0 or not isinstance(value, list | tuple) or len(value) > _FEW_ITEMS:
            head += self._long(self._packer.pack(value))
            return head
        head += self._packer.pack_array_header(len(value))
        for item in value:
            head = self._pack_bulky(item, depth - 1, head, buffers, place_of)
        return head


def _is_bulky(value: Any, depth: int) -> bool:
    """Tell whether a value has a long byte string near its top, worth not copying."""
    if type(value) in _BYTES:
        return len(value) >= LONG_BYTES
    if depth == 0 or not isinstance(value, list | tuple) or len(value) > _FEW_ITEMS:
        return False
    inner = [item for item in value if type(item) not in _SMALL]
    return any(_is_bulky(item, depth - 1) for item in inner) if inner else False


class Decoder:
    """Cuts what arrives on one connection into messages.

    What comes next is received into `room`, then told by `received`; `next` is called until it returns None
    before there is room again. A message that is here at once is unpacked as a whole; the long byte strings
    of another one are received where they stay.

    Args:
        max_message_bytes: a longer message is refused as soon as it is seen to be longer, and so is one with
            more values than one for each BYTES_A_VALUE of these.
        strict: structs have names of strings only, as XML-RPC has it (a server insists).
        lender: whose memory the long byte strings are received into, where it has room.
        may_hold: asked before memory is taken for a message of so many bytes or more. After a no, `next`
            returns None, and asks again when it is called the next time.
    """

    def __init__(
        self,
        max_message_bytes: int,
        *,
        strict: bool = False,
        lender: Lender | None = None,
        may_hold: MayHold = always,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._lender = lender
        self._may_hold = may_hold
        self._lent_at: dict[int, Callable[[bytes], memoryview]] = {}
        """By extension type, what returns the bytes that a place stands for."""
        self._bounds: dict[str, Any] = {
            "use_list": True,
            "strict_map_key": strict,
            "max_str_len": max_message_bytes,
            "max_bin_len": max_message_bytes,
            "max_array_len": LONGEST_ARRAY,
            "max_map_len": LONGEST_MAP,
        }
        self._room = memoryview(bytearray(ROOM_BYTES))
        self._start = self._end = 0
        """Where in the room what nobody has taken yet begins and ends."""
        self._long: LongMessage | None = None
        self._fed_here = 0
        """How many bytes the unpacker was fed last; they are in the room still, up to `_fed_end`."""
        self._fed_end = 0
        self._given_up = False
        """Whether the message that has begun was a long one, and is not to become one again."""
        self._values = 0
        """How many values were unpacked of that message."""
        self._counting = {"list_hook": self._count_list, "object_hook": self._count_map}
        self._renew_unpacker()

    def _renew_unpacker(self) -> None:
        self._unpacker = msgpack.Unpacker(
            read_size=ROOM_BYTES,
            max_buffer_size=0,
            max_ext_len=PLACE_BYTES if self._lent_at else 0,
            ext_hook=self._lent,
            **(self._counting if self._given_up else {}),
            **self._bounds,
        )
        self._fed_bytes = self._complete_bytes = 0
        self._fed_here = 0

    def borrow(self, memory: Borrowed, code: int) -> None:
        """Say where the bytes are that messages refer to from now on, after the message returned last."""
        self._take_places(code, memory.at)

    def await_in(self, room: Lender) -> None:
        """Say in which memory answers are expected, from the next message on."""
        self._take_places(ROOM_CODE, room.at)

    def _take_places(self, code: int, lent_at: Callable[[bytes], memoryview]) -> None:
        self._lent_at[code] = lent_at
        if pending_bytes := self._fed_bytes - self._complete_bytes:
            self._start, self._end = self._fed_end - pending_bytes, self._fed_end
        self._renew_unpacker()

    def _lent(self, code: int, place: bytes) -> memoryview:
        """Return the bytes that a message refers to."""
        if code not in self._lent_at or len(place) != PLACE_BYTES:
            raise ValueError("an extension type that is none of ours")
        return self._lent_at[code](place)

    def _count_list(self, items: list[Any]) -> list[Any]:
        self._count(1 + len(items))
        return items

    def _count_map(self, items: dict[Any, Any]) -> dict[Any, Any]:
        self._count(1 + 2 * len(items))
        return items

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > self._max_message_bytes // BYTES_A_VALUE:
            raise ValueError(f"more than {self._max_message_bytes // BYTES_A_VALUE} values")

    def room(self) -> memoryview:
        """Return where the next bytes are to be received; never empty after `next` has returned None."""
        if self._long is None and not self._end:
            return self._room
        if self._long is not None and (place := self._long.room()) is not None:
            return place
        if self._start:
            rest = self._end - self._start
            self._room[:rest] = self._room[self._start : self._end]
            self._start, self._end = 0, rest
        return self._room[self._end :]

    def end(self) -> None:
        """Give back what is held of a message of which no more comes."""
        self._long, self._may_hold = None, always

    def received(self, count: int) -> None:
        """Say that so many bytes were received into what `room` returned last."""
        if self._long is not None and self._long.room() is not None:
            self._long.received(count)
        else:
            self._end += count

    def next(self) -> list[Any] | None:
        """Return the next whole message, or None if there is none yet.

        Raises:
            Malformed: what arrived is garbage or too long.
        """
        if self._long is None and self._complete_bytes == self._fed_bytes:
            if self._start == self._end:
                return None
            if self._end - self._start == ROOM_BYTES:  # there is more of it, as it seems
                self._long = self._begin_long()
        try:
            message = self._unpack_next() if self._long is None else _NOT_YET
            if self._long is not None:
                message = self._take_long(self._long)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise Malformed(f"no MessagePack within bounds: {error or type(error).__name__}") from None
        if message is _NOT_YET:
            return None
        if type(message) is not list or len(message) != 4:
            raise Malformed("not a message of four parts")
        return message

    def _unpack_next(self) -> Any:
        """Unpack a message. One that is not all here is begun again as a long one, if it can be."""
        if self._end:
            self._unpacker.feed(self._room[self._start : self._end])
            self._fed_here, self._fed_end = self._end - self._start, self._end
            self._fed_bytes += self._fed_here
            self._start = self._end = 0
        try:
            message = self._unpacker.unpack()
        except msgpack.OutOfData:
            pending_bytes = self._fed_bytes - self._complete_bytes
            if pending_bytes > self._max_message_bytes:
                raise Malformed(f"a message of over {self._max_message_bytes} bytes") from None
            if 0 < pending_bytes <= self._fed_here and not self._given_up:
                self._start, self._end = self._fed_end - pending_bytes, self._fed_end
                self._renew_unpacker()
                self._long = self._begin_long()
            return _NOT_YET
        self._complete_bytes = self._unpacker.tell()
        self._given_up = False
        if self._values:
            self._values = 0
            if self._complete_bytes == self._fed_bytes:
                self._renew_unpacker()  # one that does not count, which takes time
        return message

    def _begin_long(self) -> LongMessage:
        return LongMessage(
            self._max_message_bytes, self._lender, takes_places=bool(self._lent_at), may_hold=self._may_hold
        )

    def _take_long(self, long: LongMessage) -> Any:
        self._start += long.take(self._room[self._start : self._end])
        if self._start == self._end:
            self._start = self._end = 0
        if long.given_up:
            self._long = None
            return self._unpack_given_up(long)
        if not long.done:
            return _NOT_YET
        self._long = None

        def look_up(code: int, data: bytes) -> Buffer:
            return long.string(data) if len(data) == PLACEHOLDER_BYTES else self._lent(code, data)

        return msgpack.unpackb(long.frame, ext_hook=look_up, max_ext_len=PLACE_BYTES, **self._bounds)

    def _unpack_given_up(self, long: LongMessage) -> Any:
        """Leave a message of many items to the unpacker, from its first byte on."""
        self._given_up = True
        self._renew_unpacker()
        for part in long.parts:
            self._unpacker.feed(part)
            self._fed_bytes += len(part)
        return self._unpack_next()

    @property
    def announced_bytes(self) -> int:
        """How much memory the message takes that is arriving, as far as is known."""
        return max(self.pending_bytes, self._long.announced_bytes if self._long else 0)

    @property
    def pending_bytes(self) -> int:
        """How many bytes have arrived after the last whole message."""
        long_bytes = self._long.pending_bytes if self._long else 0
        return self._fed_bytes - self._complete_bytes + long_bytes + self._end - self._start


def error_of(fault: Any) -> QuorumfsError:
    """Return the error that the third part of an answer stands for."""
    if type(fault) is list and len(fault) == 3 and type(fault[0]) is int and type(fault[1]) is str:
        return from_fault(fault[0], fault[1], fault[2] if type(fault[2]) is dict else None)
    return QuorumfsError(f"an error that is none of ours: {fault!r:.200}")


_BYTES = frozenset((bytes, bytearray, memoryview))
_SMALL = frozenset((int, bool, str, float, type(None)))
_NOT_YET = object()
_UNPACKABLE = (TypeError, ValueError, OverflowError)
