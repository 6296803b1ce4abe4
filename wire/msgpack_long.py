"""One MessagePack message that does not come at once: its long byte strings are received in place.

It looks only at what each item announces: how many bytes or items follow. What it announces is bounded
before it is waited for. It must not know the serializer nor what a message means. One thread at a time.
Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple, Protocol

from wire.lending import Lender

LONG_BYTES = 16 * 1024
"""From here on a byte string is long: it is neither packed with what is around it, nor unpacked."""
LONGEST_BYTES = 4 * 1024 * 1024
"""A longer byte string is not received in place: space for it is only taken as it comes."""
LONGEST_ARRAY = LONGEST_MAP = 65536
"""Items of an array, and pairs of a map."""
TAIL_BYTES = 1024
"""So many bytes of a long byte string are received with what follows."""
MOST_ITEMS = 64
"""Long byte strings are looked for among so many items; a message of more is left to the serializer."""


MayHold = Callable[[int], bool]
"""Tells whether memory may be taken for so many bytes."""


def always(size: int) -> bool:
    """Let any message have its memory."""
    return True


class Malformed(Exception):
    """What arrived is no message of this protocol, or too large; the connection is of no more use."""


class Item(NamedTuple):
    """What the head of an item announces: the bytes of the head, the bytes after it, the items after it."""

    head_bytes: int
    body_bytes: int
    items: int


class _Format(NamedTuple):
    """What a first byte means: `width` bytes of a number follow, which counts the bytes or the items.

    Without a width, `body_bytes` and `items` are the counts themselves.
    """

    width: int
    body_bytes: int
    items: int


def _formats() -> list[_Format | None]:
    """Return what each first byte means; None for the one that is never used, and for extension types."""
    scalars = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}
    scalars |= {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    counted = {0xC4: (1, 1, 0), 0xC5: (2, 1, 0), 0xC6: (4, 1, 0), 0xD9: (1, 1, 0), 0xDA: (2, 1, 0)}
    counted |= {0xDB: (4, 1, 0), 0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2), 0xDF: (4, 0, 2)}

    def of(first: int) -> _Format | None:
        if first < 0x80 or first >= 0xE0:
            return _Format(0, 0, 0)
        if first < 0xA0:
            return _Format(0, 0, (first & 15) * (2 if first < 0x90 else 1))
        if first < 0xC0:
            return _Format(0, first & 31, 0)
        if first in counted:
            return _Format(*counted[first])
        return _Format(0, scalars[first], 0) if first in scalars else None

    return [of(first) for first in range(256)]


_FORMATS = _formats()
_BIN_HEADS = frozenset((0xC4, 0xC5, 0xC6))
_PLACEHOLDER = b"\xd6\x00"
"""Begins what stands for a long byte string in a frame: an extension type, which no message has itself."""
PLACEHOLDER_BYTES = 4
"""So long is that extension, which no other one is."""
_LENT_HEAD = 0xD8
"""Begins what stands for lent bytes in a message: see wire.lending."""
_LENT_FORMAT = _Format(0, 17, 0)


def read_item(data: memoryview, at: int, *, takes_places: bool = False) -> Item | None:
    """Return what the item at `at` announces, None if its head is not all there. Raises Malformed.

    `takes_places`: it may stand for lent bytes.
    """
    if at >= len(data):
        return None
    form = _FORMATS[data[at]]
    if form is None and takes_places and data[at] == _LENT_HEAD:
        form = _LENT_FORMAT
    if form is None:
        raise Malformed(f"an item that begins with 0x{data[at]:02x}")
    width, body_bytes, items = form
    if not width:
        return Item(1, body_bytes, items)
    end = at + 1 + width
    if end > len(data):
        return None
    count = int.from_bytes(data[at + 1 : end], "big")
    if items and count > LONGEST_ARRAY:
        raise Malformed(f"an array or a map of {count}")
    return Item(1 + width, body_bytes * count, items * count)


class _Place(Protocol):
    """Where a long byte string is received, from its head on."""

    length: int
    filled: int

    def room(self) -> memoryview | None: ...

    def is_full(self) -> bool: ...

    def take(self, data: memoryview) -> int: ...

    def value(self) -> bytes | memoryview: ...


class _Received:
    """What is received where it stays."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.length = len(view)
        self._direct_bytes = len(view) - TAIL_BYTES
        self.filled = 0

    def room(self) -> memoryview | None:
        return self._view[self.filled : self._direct_bytes] if self.filled < self._direct_bytes else None

    def is_full(self) -> bool:
        return self.filled == len(self._view)

    def take(self, data: memoryview) -> int:
        """Copy what arrived elsewhere; return how much of it belongs here."""
        count = min(len(data), len(self._view) - self.filled)
        self._view[self.filled : self.filled + count] = data[:count]
        self.filled += count
        return count


class _LentPlace(_Received):
    """Bytes in memory that servers have mapped."""

    def value(self) -> memoryview:
        return self._view


class _OwnPlace(_Received):
    """Bytes that are received where they stay: a bytes object, filled before anybody sees it.

    A BytesIO hands the object that it was made with out again, filled through its buffer; without a copy
    only if nobody has the buffer any more. An event loop still has it when it tells what it received, so
    the last bytes are received elsewhere, with what follows them.
    """

    def __init__(self, length: int) -> None:
        self._file = BytesIO(bytes(length))
        super().__init__(self._file.getbuffer())

    def value(self) -> bytes:
        self._view.release()
        return self._file.getvalue()


class LongMessage:
    """A message that has begun to arrive.

    Args:
        max_message_bytes: a longer one is refused as soon as one of its heads announces it.
        lender: whose memory its long byte strings are received into, where it has room.
        takes_places: it may refer to lent bytes.
        may_hold: asked before memory is taken for a long byte string, with the length of the message so far;
            after a no, `take` takes no more until it is called again.

    Attributes:
        done: all of it is here: `frame`, where a place stands for each of `strings`.
        given_up: it has too many items to look at; `parts` are its bytes so far.
    """

    def __init__(
        self,
        max_message_bytes: int,
        lender: Lender | None = None,
        *,
        takes_places: bool = False,
        may_hold: MayHold = always,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._lender = lender
        self._takes_places = takes_places
        self._may_hold = may_hold
        self._open_items = 1
        self._items = 0
        self._place: _Place | None = None
        self._bytes = 0
        self.frame = bytearray()
        self.strings: list[bytes | memoryview] = []
        self.parts: list[bytes | memoryview] = []
        self.given_up = False

    @property
    def done(self) -> bool:
        return self._open_items == 0 and self._place is None

    @property
    def pending_bytes(self) -> int:
        """How many of its bytes are here."""
        return self._bytes + (self._place.filled if self._place else 0)

    @property
    def announced_bytes(self) -> int:
        """How many of its bytes are here, or belong to the byte string that is being received."""
        return self._bytes + (self._place.length if self._place else 0)

    def room(self) -> memoryview | None:
        """Return where the next bytes are to be received; None if anywhere."""
        return self._place.room() if self._place else None

    def received(self, count: int) -> None:
        """Say that so many bytes were received into the room."""
        assert self._place is not None
        self._place.filled += count

    def take(self, data: memoryview) -> int:
        """Take in what arrived, item by item; return how much of it was taken. Raises Malformed."""
        at = 0
        while self._open_items or self._place:
            taken = self._fill(self._place, data[at:]) if self._place else self._take_item(data, at)
            if not taken:
                break
            at += taken
        return at

    def _fill(self, place: _Place, data: memoryview) -> int:
        taken = place.take(data)
        if place.is_full():
            self._place = None
            self._bytes += place.filled
            self.strings.append(place.value())
            self.parts.append(self.strings[-1])
        return taken

    def _take_item(self, data: memoryview, at: int) -> int:
        """Take in one item, or the head of a long one; return its bytes, 0 if it is not all here."""
        item = read_item(data, at, takes_places=self._takes_places)
        if item is None:
            return 0
        head_bytes, body_bytes, items = item
        if self._bytes + head_bytes + body_bytes > self._max_message_bytes:
            raise Malformed(f"a message of over {self._max_message_bytes} bytes")
        self._items += 1
        is_long = body_bytes >= LONG_BYTES
        if self._items > MOST_ITEMS or (
            is_long and (data[at] not in _BIN_HEADS or body_bytes > LONGEST_BYTES)
        ):
            self.given_up = True
            return 0
        end = at + head_bytes if is_long else at + head_bytes + body_bytes
        if end > len(data) or (is_long and not self._may_hold(self._bytes + head_bytes + body_bytes)):
            self._items -= 1
            return 0
        self._note(bytes(data[at:end]), is_long)
        self._open_items += items - 1
        if is_long:
            self._place = self._place_for(body_bytes)
        return end - at

    def _place_for(self, length: int) -> _Place:
        lent = self._lender.take(length) if self._lender else None
        return _OwnPlace(length) if lent is None else _LentPlace(lent)

    def _note(self, raw: bytes, is_head_of_place: bool) -> None:
        self._bytes += len(raw)
        self.parts.append(raw)
        if is_head_of_place:
            raw = _PLACEHOLDER + len(self.strings).to_bytes(PLACEHOLDER_BYTES, "big")
        self.frame += raw

    def string(self, number: bytes) -> bytes | memoryview:
        """Return the long byte string that a placeholder in the frame stands for."""
        return self.strings[int.from_bytes(number, "big")]
