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
from wire.sizes import VALUE_BYTES

FIRST_BYTE = 0x94
"""Every message is an array of four: this byte begins it, and tells it from HTTP."""

REQUEST, ANSWER = 0, 1
LARGEST_ID = 2**32 - 1
ROOM_BYTES = 64 * 1024
"""What is received at once, but for long byte strings."""
_LEAST_ROOM_BYTES = 8 * 1024

Buffer = bytes | bytearray | memoryview

_FEW_ITEMS = 64
_LISTS = (list, tuple)
_PACKER_BYTES = 64 * 1024
"""What a packer may keep from one message to the next."""
BYTES_A_VALUE = 16
"""A message has at most one value for so many of the bytes that it may have: one byte can be a value that
takes VALUE_BYTES of memory."""


PlaceToBytes = Callable[[int, bytes], memoryview]
"""Returns the bytes that a place stands for, from an extension's type and its bytes."""
_PlaceOf = Callable[[Buffer], bytes | None]
"""Returns what stands for bytes in a message, None if they have to be in it."""


class Packing:
    """The packer that the encoders of one thread share: a thousand connections would have 64 MiB of them."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Give up the memory of the longest value that was packed."""
        self.packer = msgpack.Packer(unicode_errors="backslashreplace", buf_size=_PACKER_BYTES)


class Encoder:
    """Packs messages. Long byte strings are handed through, not copied into the message.

    Args:
        packing: what it shares with others of its thread.

    Attributes:
        room: memory of the caller: of answers that lie there only the place is sent.
    """

    def __init__(self, packing: Packing | None = None) -> None:
        self.room: Borrowed | None = None
        self._packing = packing or Packing()

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
            return self._pack(self._packing.packer.pack(method), params, Lender.place_of if lent else None)
        except _UNPACKABLE as error:
            raise BadRequest(f"{method}: a parameter cannot be sent: {error}") from None

    def addressed(self, request_id: int, body: list[Buffer]) -> list[Buffer]:
        """Return the buffers of a request of a body that was packed before."""
        return [b"\x94\x00" + self._packing.packer.pack(request_id) + body[0], *body[1:]]

    def answer(self, request_id: int, result: Any) -> list[Buffer]:
        """Return the buffers of a result. Raises TypeError, ValueError or OverflowError if it cannot."""
        place_of = self.room.place_of if self.room else None
        return self._pack(b"\x94\x01" + self._packing.packer.pack(request_id) + b"\xc0", result, place_of)

    def error(self, request_id: int, error: QuorumfsError) -> list[Buffer]:
        """Return the buffers of an error. A detail that cannot cross is left out."""
        fault = to_fault(error)
        try:
            return [self._packing.packer.pack((ANSWER, request_id, fault, None))]
        except _UNPACKABLE:
            return [self._packing.packer.pack((ANSWER, request_id, (fault[0], str(fault[1]), {}), None))]

    def _pack(self, head: bytes, value: Any, place_of: _PlaceOf | None) -> list[Buffer]:
        """Return the buffers of what was packed already and a value after it."""
        if not _is_bulky(value, 2):
            packed = self._packing.packer.pack(value)
            return [head + packed] if len(packed) < LONG_BYTES else [head, self._long(packed)]
        buffers: list[Buffer] = []
        rest = self._pack_bulky(value, 2, bytearray(head), buffers, place_of)
        if rest:
            buffers.append(rest)
        return buffers

    def _long(self, packed: bytes) -> bytes:
        """Return what was packed; a packer keeps the memory of the longest value that it has packed."""
        if len(packed) > _PACKER_BYTES:
            self._packing.renew()
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
        if depth == 0 or not isinstance(value, _LISTS) or len(value) > _FEW_ITEMS:
            head += self._long(self._packing.packer.pack(value))
            return head
        head += self._packing.packer.pack_array_header(len(value))
        for item in value:
            head = self._pack_bulky(item, depth - 1, head, buffers, place_of)
        return head


def _is_bulky(value: Any, depth: int) -> bool:
    """Tell whether a value has a long byte string near its top, worth not copying."""
    if type(value) in _BYTES:
        return len(value) >= LONG_BYTES
    if depth == 0 or not isinstance(value, _LISTS) or len(value) > _FEW_ITEMS:
        return False
    inner = [item for item in value if type(item) not in _SMALL]
    return any(_is_bulky(item, depth - 1) for item in inner) if inner else False


class Workbench:
    """What decoders and encoders of one thread share: where bytes are received, what packs and unpacks most.

    A thousand connections would else have a room and an unpacker each, 100 KiB of memory. Only one decoder
    has something here at a time: from when it is told what it `received` until it is told to `leave`.

    Args:
        max_message_bytes: a longer message is refused as soon as it is seen to be longer, and so is one with
            more values than one for each BYTES_A_VALUE of these.
        strict: structs have names of strings only, as XML-RPC has it (a server insists).
    """

    def __init__(self, max_message_bytes: int, *, strict: bool = False) -> None:
        self.max_message_bytes = max_message_bytes
        self.room = memoryview(bytearray(ROOM_BYTES))
        self.packing = Packing()
        self.lent: PlaceToBytes = _never_lent
        """What the decoder that is at work takes for lent bytes."""
        self.bounds: dict[str, Any] = {
            "use_list": True,
            "strict_map_key": strict,
            "max_str_len": max_message_bytes,
            "max_bin_len": max_message_bytes,
            "max_array_len": LONGEST_ARRAY,
            "max_map_len": LONGEST_MAP,
        }
        self.unpackers = {places: self.new_unpacker(places) for places in (False, True)}
        """The one for messages that may have places, and the one for others."""

    def renew(self, takes_places: bool) -> None:
        """Forget what an unpacker has of a message that goes on elsewhere."""
        self.unpackers[takes_places] = self.new_unpacker(takes_places)

    def new_unpacker(self, takes_places: bool, **hooks: Any) -> msgpack.Unpacker:
        """Return an unpacker within the bounds."""
        longest = PLACE_BYTES if takes_places else 0
        return msgpack.Unpacker(
            read_size=ROOM_BYTES,
            max_buffer_size=0,
            max_ext_len=longest,
            ext_hook=self._lent,
            **hooks,
            **self.bounds,
        )

    def _lent(self, code: int, place: bytes) -> memoryview:
        return self.lent(code, place)


class Decoder:
    """Cuts what arrives on one connection into messages.

    What comes next is received into `room`, then told by `received`; `next` is called until it returns None
    before there is room again. A message that is here at once is unpacked as a whole; the long byte strings
    of another one are received where they stay.

    Args:
        bench: what it shares with others of its thread, and the bounds of messages.
        lender: whose memory the long byte strings are received into, where it has room.
        may_hold: asked before memory is taken for a message of so many bytes or more. After a no, `next`
            returns None, and asks again when it is called the next time.

    Attributes:
        message_bytes: how long the message was that `next` returned last.
    """

    def __init__(
        self,
        bench: Workbench,
        *,
        lender: Lender | None = None,
        may_hold: MayHold = always,
    ) -> None:
        self._bench = bench
        self._room = bench.room
        self._max_message_bytes = bench.max_message_bytes
        self._lender = lender
        self._may_hold = may_hold
        self._lent_at: dict[int, Callable[[bytes], memoryview]] = {}
        """By extension type, what returns the bytes that a place stands for."""
        self._takes_places = False
        """Whether there are any."""
        self._kept = b""
        """What nobody has taken yet, while the bench is left to others."""
        self._start = self._end = 0
        """Where in the bench's room it begins and ends, while it is not."""
        self._long: LongMessage | None = None
        self._unpacker: msgpack.Unpacker | None = None
        """The bench's while this is at work there, or one for a message whose values are counted."""
        self._fed_bytes = self._complete_bytes = 0
        self._fed_here = 0
        """How many bytes the unpacker was fed last; they are in the room still, up to `_fed_end`."""
        self._fed_end = 0
        self._given_up = False
        """Whether the message that has begun was a long one, and is not to become one again."""
        self._values = 0
        """How many values were unpacked of that message."""
        self.message_bytes = 0

    def borrow(self, memory: Borrowed, code: int) -> None:
        """Say where the bytes are that messages refer to from now on, after the message returned last."""
        self._take_places(code, memory.at)

    def await_in(self, room: Lender) -> None:
        """Say in which memory answers are expected, from the next message on."""
        self._take_places(ROOM_CODE, room.at)

    def _take_places(self, code: int, lent_at: Callable[[bytes], memoryview]) -> None:
        if pending_bytes := self._fed_bytes - self._complete_bytes:
            self._start, self._end = self._fed_end - pending_bytes, self._fed_end
            self._forget_fed()
        self._lent_at[code] = lent_at
        self._takes_places = True

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

    def room(self, most_bytes: int = ROOM_BYTES) -> memoryview:
        """Return where the next bytes are to be received; never empty after `next` has returned None.

        Args:
            most_bytes: of what is not received where it stays. There may be more room where some is here.
        """
        if self._long is not None and (place := self._long.room()) is not None:
            return place
        if self._start:
            rest = self._end - self._start
            self._room[:rest] = self._room[self._start : self._end]
            self._start, self._end = 0, rest
        begin = len(self._kept) or self._end
        return self._room[begin : max(most_bytes, begin + _LEAST_ROOM_BYTES)]

    def received(self, count: int) -> None:
        """Say that so many bytes were received into what `room` returned last."""
        if self._long is not None and self._long.room() is not None:
            self._long.received(count)
        else:
            if self._kept:
                self._come_back()
            self._end += count

    def leave(self) -> None:
        """Leave the bench to other decoders. What is here of messages is kept."""
        if self._fed_bytes != self._complete_bytes and not self._given_up:
            begin = self._fed_end - (self._fed_bytes - self._complete_bytes)
            self._kept = bytes(self._room[begin : self._fed_end])
            self._forget_fed()
        elif self._start != self._end:
            self._kept = bytes(self._room[self._start : self._end])
        self._start = self._end = 0
        if not self._given_up:
            self._unpacker = None  # the bench may have another one soon: each keeps 44 KiB

    def _come_back(self) -> None:
        self._start, self._end = 0, len(self._kept)
        self._room[: self._end] = self._kept
        self._kept = b""

    def _forget_fed(self) -> None:
        """Have an unpacker without what is in the room still, or in the parts of a long message."""
        if self._unpacker is self._bench.unpackers[self._takes_places]:
            self._bench.renew(self._takes_places)
        self._use(self._bench.unpackers[self._takes_places])

    def _use(self, unpacker: msgpack.Unpacker) -> None:
        self._unpacker = unpacker
        self._fed_bytes = self._complete_bytes = unpacker.tell()
        self._fed_here = 0

    def _feed(self, data: Buffer) -> None:
        assert self._unpacker is not None
        self._unpacker.feed(data)
        self._fed_bytes += len(data)

    def end(self) -> None:
        """Give back what is held of a message of which no more comes."""
        self._long, self._may_hold = None, always
        self._lent_at = {}  # the bench may have this decoder still
        self._kept = b""
        self._start = self._end = 0
        self._use(self._bench.unpackers[False])

    def next(self) -> list[Any] | None:
        """Return the next whole message, or None if there is none yet.

        Raises:
            Malformed: what arrived is garbage or too long.
        """
        if self._kept:
            self._come_back()
        if self._long is None and self._complete_bytes == self._fed_bytes:
            if self._start == self._end:
                return None
            if self._end - self._start == ROOM_BYTES:  # there is more of it, as it seems
                self._long = self._begin_long()
        if self._takes_places:
            self._bench.lent = self._lent
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
            if self._fed_bytes == self._complete_bytes:
                self._use(self._bench.unpackers[self._takes_places])
            self._feed(self._room[self._start : self._end])
            self._fed_here, self._fed_end = self._end - self._start, self._end
            self._start = self._end = 0
        unpacker = self._unpacker
        assert unpacker is not None
        try:
            message = unpacker.unpack()
        except msgpack.OutOfData:
            pending_bytes = self._fed_bytes - self._complete_bytes
            if pending_bytes > self._max_message_bytes:
                raise Malformed(f"a message of over {self._max_message_bytes} bytes") from None
            if 0 < pending_bytes <= self._fed_here and not self._given_up:
                self._start, self._end = self._fed_end - pending_bytes, self._fed_end
                self._forget_fed()
                self._long = self._begin_long()
            return _NOT_YET
        complete_bytes = unpacker.tell()
        self.message_bytes = complete_bytes - self._complete_bytes
        self._complete_bytes = complete_bytes
        if self._given_up:
            self._given_up = False
            self._values = 0
            if complete_bytes == self._fed_bytes:
                self._use(self._bench.unpackers[self._takes_places])  # its own keeps much memory
        return message

    def _begin_long(self) -> LongMessage:
        return LongMessage(
            self._max_message_bytes, self._lender, takes_places=self._takes_places, may_hold=self._may_hold
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
        self.message_bytes = long.pending_bytes

        def look_up(code: int, data: bytes) -> Buffer:
            return long.string(data) if len(data) == PLACEHOLDER_BYTES else self._lent(code, data)

        return msgpack.unpackb(long.frame, ext_hook=look_up, max_ext_len=PLACE_BYTES, **self._bench.bounds)

    def _unpack_given_up(self, long: LongMessage) -> Any:
        """Leave a message of many items to the unpacker, from its first byte on."""
        self._given_up = True
        hooks = {"list_hook": self._count_list, "object_hook": self._count_map}
        self._use(self._bench.new_unpacker(self._takes_places, **hooks))
        for part in long.parts:
            self._feed(part)
        return self._unpack_next()

    @property
    def announced_bytes(self) -> int:
        """How much memory the message takes that is arriving, as far as is known."""
        long_bytes = self._long.announced_bytes if self._long else 0
        return max(self.pending_bytes, long_bytes, self._values * VALUE_BYTES)

    @property
    def pending_bytes(self) -> int:
        """How many bytes have arrived after the last whole message."""
        long_bytes = self._long.pending_bytes if self._long else 0
        here_bytes = self._end - self._start + len(self._kept)
        return self._fed_bytes - self._complete_bytes + long_bytes + here_bytes


def error_of(fault: Any) -> QuorumfsError:
    """Return the error that the third part of an answer stands for."""
    if type(fault) is list and len(fault) == 3 and type(fault[0]) is int and type(fault[1]) is str:
        return from_fault(fault[0], fault[1], fault[2] if type(fault[2]) is dict else None)
    return QuorumfsError(f"an error that is none of ours: {fault!r:.200}")


def _never_lent(code: int, place: bytes) -> memoryview:
    raise ValueError("an extension type that is none of ours")


_BYTES = frozenset((bytes, bytearray, memoryview))
_SMALL = frozenset((int, bool, str, float, type(None)))
_NOT_YET = object()
_UNPACKABLE = (TypeError, ValueError, OverflowError)
