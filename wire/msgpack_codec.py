"""MessagePack-RPC messages in and out: the one module that knows the serializer.

A request is [0, id, method, params], an answer [1, id, error, result], an error [fault code,
message, detail]. Everything is bounded before it is read. An Encoder or Decoder belongs to one
thread at a time. Sources: https://github.com/msgpack/msgpack/blob/master/spec.md and
https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from wire.errors import BadRequest, QuorumfsError, from_fault, to_fault

FIRST_BYTE = 0x94
"""Every message is an array of four: this byte begins it, and tells it from HTTP."""

REQUEST, ANSWER = 0, 1
LARGEST_ID = 2**32 - 1
LONGEST_ARRAY = 65536
LONGEST_MAP = 65536

Buffer = bytes | bytearray | memoryview

_LARGE_BYTES = 16 * 1024
_FEW_ITEMS = 64


class Malformed(Exception):
    """What arrived is no message of this protocol, or too large; the connection is of no more use."""


class Encoder:
    """Packs messages. Long byte strings are handed through, not copied into the message."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(unicode_errors="backslashreplace")

    def request(self, request_id: int, method: str, params: Sequence[Any]) -> list[Buffer]:
        """Return the buffers of a request, to be sent one after the other.

        Raises:
            BadRequest: a parameter cannot cross the wire.
        """
        return self.addressed(request_id, self.body(method, params))

    def body(self, method: str, params: Sequence[Any]) -> list[Buffer]:
        """Return what a request is but for its id. Raises BadRequest as `request`."""
        try:
            return self._pack(self._packer.pack(method), params)
        except _UNPACKABLE as error:
            raise BadRequest(f"{method}: a parameter cannot be sent: {error}") from None

    def addressed(self, request_id: int, body: list[Buffer]) -> list[Buffer]:
        """Return the buffers of a request of a body that was packed before."""
        return [b"\x94\x00" + self._packer.pack(request_id) + body[0], *body[1:]]

    def answer(self, request_id: int, result: Any) -> list[Buffer]:
        """Return the buffers of a result. Raises TypeError, ValueError or OverflowError if it cannot."""
        return self._pack(b"\x94\x01" + self._packer.pack(request_id) + b"\xc0", result)

    def error(self, request_id: int, error: QuorumfsError) -> list[Buffer]:
        """Return the buffers of an error. A detail that cannot cross is left out."""
        fault = to_fault(error)
        try:
            return [self._packer.pack((ANSWER, request_id, fault, None))]
        except _UNPACKABLE:
            return [self._packer.pack((ANSWER, request_id, (fault[0], str(fault[1]), {}), None))]

    def _pack(self, head: bytes, value: Any) -> list[Buffer]:
        """Return the buffers of what was packed already and a value after it."""
        if not _is_bulky(value, 2):
            return [head + self._packer.pack(value)]
        buffers: list[Buffer] = []
        rest = self._pack_bulky(value, 2, bytearray(head), buffers)
        if rest:
            buffers.append(rest)
        return buffers

    def _pack_bulky(self, value: Any, depth: int, head: bytearray, buffers: list[Buffer]) -> bytearray:
        """Append the buffers of a value; return the one that is still open to be added to."""
        kind = type(value)
        if kind in _BYTES and len(value) >= _LARGE_BYTES:
            head += b"\xc6" + len(value).to_bytes(4, "big")
            buffers += (head, value)
            return bytearray()
        if depth == 0 or not isinstance(value, list | tuple) or len(value) > _FEW_ITEMS:
            head += self._packer.pack(value)
            return head
        head += self._packer.pack_array_header(len(value))
        for item in value:
            head = self._pack_bulky(item, depth - 1, head, buffers)
        return head


def _is_bulky(value: Any, depth: int) -> bool:
    """Tell whether a value has a long byte string near its top, worth not copying."""
    if type(value) in _BYTES:
        return len(value) >= _LARGE_BYTES
    if depth == 0 or not isinstance(value, list | tuple) or len(value) > _FEW_ITEMS:
        return False
    inner = [item for item in value if type(item) not in _SMALL]
    return any(_is_bulky(item, depth - 1) for item in inner) if inner else False


class Decoder:
    """Cuts what arrives on one connection into messages.

    Args:
        max_message_bytes: a longer message is refused as soon as it is seen to be longer.
        strict: structs have names of strings only, as XML-RPC has it (a server insists).
    """

    def __init__(self, max_message_bytes: int, *, strict: bool = False) -> None:
        self._max_message_bytes = max_message_bytes
        self._fed_bytes = 0
        self._complete_bytes = 0
        self._unpacker = msgpack.Unpacker(
            use_list=True,
            strict_map_key=strict,
            max_buffer_size=0,
            max_str_len=max_message_bytes,
            max_bin_len=max_message_bytes,
            max_array_len=LONGEST_ARRAY,
            max_map_len=LONGEST_MAP,
            max_ext_len=0,
        )

    def feed(self, data: Buffer) -> None:
        """Take what arrived (at most some 100 KiB at once, so that the bound holds nearly exactly)."""
        self._fed_bytes += len(data)
        self._unpacker.feed(data)

    def next(self) -> list[Any] | None:
        """Return the next whole message, or None if there is none yet.

        Raises:
            Malformed: what arrived is garbage or too long.
        """
        if self._complete_bytes == self._fed_bytes:
            return None
        try:
            message = self._unpacker.unpack()
        except msgpack.OutOfData:
            if self.pending_bytes > self._max_message_bytes:
                raise Malformed(f"a message of over {self._max_message_bytes} bytes") from None
            return None
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise Malformed(f"no MessagePack within bounds: {error or type(error).__name__}") from None
        self._complete_bytes = self._unpacker.tell()
        if type(message) is not list or len(message) != 4:
            raise Malformed("not a message of four parts")
        return message

    @property
    def pending_bytes(self) -> int:
        """How many bytes have arrived after the last whole message."""
        return self._fed_bytes - self._complete_bytes


def error_of(fault: Any) -> QuorumfsError:
    """Return the error that the third part of an answer stands for."""
    if type(fault) is list and len(fault) == 3 and type(fault[0]) is int and type(fault[1]) is str:
        return from_fault(fault[0], fault[1], fault[2] if type(fault[2]) is dict else None)
    return QuorumfsError(f"an error that is none of ours: {fault!r:.200}")


_BYTES = frozenset((bytes, bytearray, memoryview))
_SMALL = frozenset((int, bool, str, float, type(None)))
_UNPACKABLE = (TypeError, ValueError, OverflowError)
