"""Memory that a caller lends to servers of the same machine: bytes lie there, and messages say where.

A caller that is connected by a Unix socket offers its memory (`LEND`, the first call of a connection); a
server that has mapped it finds long byte strings of later calls there, not in the socket. Other memory is
offered as room for what the server answers (`LEND_ROOM`). Behind the slots
of the memory there is a table of how often each was taken: by it who used some bytes knows afterwards whether
they were still those that were lent. It must not know what the bytes are, nor wait. Whatever does not work,
the bytes go through the socket. Safe in any thread. Source: memfd_create(2), SO_PEERCRED in unix(7)
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import socket
import struct
import weakref
from collections import deque
from typing import Any

from wire.digest import BLOCK_BYTES, Buffer
from wire.errors import BadRequest

log = logging.getLogger("wire.lending")

LEND = "system.lend"
"""What the call is named that offers memory: a descriptor, the device, inode and size of what it is of."""
LEND_ROOM = "system.lend_room"
"""The same of memory for answers: a call that wants long bytes says where they are to be put.

It belongs to one connection, and ends with it: a server that answers too late writes where nobody looks.
"""
SLOT_BYTES = BLOCK_BYTES
LEAST_BYTES = 128 * 1024
"""Shorter byte strings go through the socket: a slot is worth its page faults from about here on."""
LEAST_ROOM_BYTES = 32 * 1024
"""Shorter answers do: what is used again and again has few page faults."""
SLOTS = 32
ROOM_SLOTS = 8
MOST_LENT_BYTES = 256 * 1024 * 1024
TABLE_BYTES = 4096
"""Behind the slots: for each how often it was taken, a 64-bit number."""
CODE, ROOM_CODE = 1, 2
"""The extension types that stand for lent bytes, and for those in lent room, in a message: where they begin,
how many they are, and how often their slot had been taken."""
_PLACE = struct.Struct(">IIQ")
PLACE_BYTES = _PLACE.size
_EXTENSION = 0xD8  # of 16 bytes
_ROOM_HEAD = bytes((_EXTENSION, ROOM_CODE))
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): process, user, group
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class _Slot(ctypes.c_ubyte * SLOT_BYTES):  # type: ignore[misc]  # an array type is made when it is asked for
    """Some lent memory in use. It is free again when the last view of it is gone."""

    head: bytes
    offset: int
    turn: int
    taken: weakref.ref[memoryview]


class _BorrowedSlot(ctypes.c_ubyte * SLOT_BYTES):  # type: ignore[misc]
    """The same memory as another process has it; `turns` is its table."""

    turns: memoryview
    number: int
    turn: int


class Lender:
    """This process's memory for others to use: slots of a block each.

    Args:
        slots: how many.
        code: CODE, or ROOM_CODE for memory that others write to.
        least_bytes: for fewer bytes there is no slot.

    Attributes:
        offer: the parameters of `LEND` or `LEND_ROOM`.
    """

    def __init__(self, slots: int = SLOTS, code: int = CODE, least_bytes: int = LEAST_BYTES) -> None:
        """Take the memory; pages are only used as they are first written. Raises OSError."""
        self._least_bytes = least_bytes
        self._head = bytes((_EXTENSION, code))
        size = slots * SLOT_BYTES + TABLE_BYTES
        self._handle = os.memfd_create("quorumfs-lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._handle).atexit = False
        os.ftruncate(self._handle, size)
        fcntl.fcntl(self._handle, fcntl.F_ADD_SEALS, _SEALS)
        self._memory = mmap.mmap(self._handle, size)
        self._turns = _table_of(self._memory)
        self._free = deque(range(slots))
        self._taken: dict[int, weakref.ref[memoryview]] = {}
        found = os.fstat(self._handle)
        self.offer = [self._handle, found.st_dev, found.st_ino, size]

    def take(self, length: int) -> memoryview | None:
        """Return writable memory for a byte string; None if it is too short or too long, or all is in use.

        It stays in use as long as this view, or one made of it, is referred to.
        """
        if not self._least_bytes <= length <= SLOT_BYTES:
            return None
        try:
            number = self._free.pop()
        except IndexError:
            return None
        self._turns[number] += 1  # before anything is written there
        slot = _Slot.from_buffer(self._memory, number * SLOT_BYTES)
        weakref.finalize(slot, self._free.append, number).atexit = False
        slot.head, slot.offset, slot.turn = self._head, number * SLOT_BYTES, self._turns[number]
        view = memoryview(slot).cast("B")[:length]
        slot.taken = self._taken[number] = weakref.ref(view)
        return view

    def at(self, place: bytes) -> memoryview:
        """Return the bytes that an answer refers to. Raises ValueError: nobody waits for them there."""
        offset, length, turn = _PLACE.unpack(place)
        number, within = divmod(offset, SLOT_BYTES)
        taken = self._taken.get(number)
        view = taken() if taken else None
        if view is None or within or turn != self._turns[number] or length > len(view):
            raise ValueError("a place that was not lent for this")
        return view[:length]

    @staticmethod
    def place_of(data: Buffer) -> bytes | None:
        """Return how a message refers to bytes; None if they are not the whole of what `take` returned."""
        if type(data) is memoryview and type(data.obj) is _Slot and data.obj.taken() is data:
            return data.obj.head + _PLACE.pack(data.obj.offset, len(data), data.obj.turn)
        return None


def make_room() -> Lender | None:
    """Return room for a connection's answers; None where the system forbids it."""
    try:
        return Lender(ROOM_SLOTS, ROOM_CODE, LEAST_ROOM_BYTES)
    except OSError:
        return None


def room_bytes(length: int) -> int:
    """Return how much room an answer of `length` bytes needs: whole pages, as a disk gives them."""
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


def make_lender() -> Lender | None:
    """Return memory to lend; None, and a warning, where the system forbids it, as some containers do."""
    try:
        return Lender()
    except OSError as error:
        log.warning("no memory can be lent to servers of this machine: %s; it is slower so", error.strerror)
        return None


class Borrowed:
    """Another process's memory, mapped here."""

    def __init__(self, connected: socket.socket, params: Any) -> None:
        """Map what the process at the other end of a connection offers.

        Raises:
            BadRequest: it is on another machine, of another user, could shrink, or is not what it says.
        """
        if connected.family != socket.AF_UNIX:
            raise BadRequest("memory can only be lent to a process of the same machine")
        numbers = params if type(params) is list and all(type(value) is int for value in params) else []
        if len(numbers) != len(("descriptor", "device", "inode", "size")):
            raise BadRequest(f"{LEND} wants four integers")
        raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(raw)
        if user != os.geteuid():
            raise BadRequest("memory is only taken of a process of the same user")
        descriptor, device, inode, size = numbers
        try:
            handle = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise BadRequest(f"the memory that is offered cannot be had: {error.strerror}") from None
        try:
            self._memory = _map(handle, (device, inode, size))
        except OSError as error:
            raise BadRequest(f"the memory that is offered cannot be mapped: {error.strerror}") from None
        finally:
            os.close(handle)
        self._turns = _table_of(self._memory)
        self._slots = len(self._memory) // SLOT_BYTES

    def at(self, place: bytes) -> memoryview:
        """Return the bytes that a message refers to. Raises ValueError: there are none."""
        offset, length, turn = _PLACE.unpack(place)
        number, within = divmod(offset, SLOT_BYTES)
        if within or number >= self._slots or length > SLOT_BYTES:
            raise ValueError("a place outside the memory that was lent")
        slot = _BorrowedSlot.from_buffer(self._memory, offset)
        slot.turns, slot.number, slot.turn = self._turns, number, turn
        return memoryview(slot).cast("B")[:length]

    def place_of(self, data: Buffer) -> bytes | None:
        """Return how an answer refers to bytes that begin with a slot of this memory; None if they do not."""
        slot = data.obj if type(data) is memoryview else None
        if type(slot) is not _BorrowedSlot or slot.turns is not self._turns:
            return None
        if ctypes.addressof(ctypes.c_char.from_buffer(data)) != ctypes.addressof(slot):
            return None
        return _ROOM_HEAD + _PLACE.pack(slot.number * SLOT_BYTES, len(data), slot.turn)


def is_borrowed(data: Buffer | None) -> bool:
    """Tell whether some bytes lie in memory that a caller lends."""
    return type(data) is memoryview and type(data.obj) is _BorrowedSlot


def is_as_lent(data: Buffer) -> bool:
    """Tell whether borrowed bytes are those that were lent, up to now; so are all that were not borrowed.

    Who has lent some waits for the answer, but not for ever: after the connection broke, a server that was
    stopped meanwhile may find other bytes there.
    """
    slot = data.obj if type(data) is memoryview else None
    return type(slot) is not _BorrowedSlot or slot.turns[slot.number] == slot.turn


def _table_of(memory: mmap.mmap) -> memoryview:
    return memoryview(memory)[-TABLE_BYTES:].cast("Q")


def _map(handle: int, claimed: tuple[int, int, int]) -> mmap.mmap:
    """Map memory that is what was claimed, and cannot shrink: who reads past its end is killed."""
    found = os.fstat(handle)
    size = found.st_size
    slots, rest = divmod(size, SLOT_BYTES)
    has_form = slots and rest == TABLE_BYTES and size <= MOST_LENT_BYTES
    if (found.st_dev, found.st_ino, size) != claimed or not has_form:
        raise BadRequest("the memory that is offered is not what it is said to be")
    if fcntl.fcntl(handle, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise BadRequest("the memory that is offered could shrink")
    return mmap.mmap(handle, size)
