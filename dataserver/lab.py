"""Faults on demand, for tests and for those who study them: offered with --lab only.

Damage is done on the segment file itself, behind the store's back, and is deterministic: the same call on
the same record does the same. `flip` differs from server to server, `lie` is the same on all of them.
Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dataserver.record import HEADER_BYTES, PAGE_BYTES, Header, decode_header, encode_header
from dataserver.segments import Place, SegmentStore
from wire.digest import block_digest, piece_digest, piece_digests
from wire.errors import BlockDamaged, BlockError, BlockMissing, InvalidArgument, LabOnly

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 0.05
_PAGE = 1024
_NEXT_BYTE = bytes(range(1, 256)) + b"\0"


class Damage(NamedTuple):
    """The payload to write instead, whether a header is to vouch for it, and what to tell people."""

    payload: bytes
    vouched: bool
    told: str


def flip(data: bytes, recorded: bytes, number: int) -> Damage:
    """One bit turned over: another one on each server, and never back to the recorded bytes. Pure."""
    bits = len(data) * 8
    start = int.from_bytes(piece_digest(data)[:8], "big") + number
    for bit in (index % bits for index in range(start, start + bits)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << (bit % 8)
        if block_digest(wrong) != recorded:
            return Damage(bytes(wrong), False, f"flipped bit {bit % 8} of byte {bit // 8}")
    raise InvalidArgument("no bit of this block can be flipped")


def torn(data: bytes) -> Damage:
    """The second half never arrived. Pure."""
    half = len(data) // 2
    return Damage(data[:half] + bytes(len(data) - half), False, f"cut short after {half} bytes")


def zeros(data: bytes) -> Damage:
    """All bytes zero. Pure."""
    return Damage(bytes(len(data)), False, f"overwrote {len(data)} bytes with zeros")


def swap(data: bytes, other_name: str, other: bytes) -> Damage:
    """Another block's bytes, repeated or cut to this one's length. Pure."""
    repeated = (other * (len(data) // len(other) + 1))[: len(data)]
    return Damage(repeated, False, f"overwrote it with the bytes of block {other_name}")


def lie(data: bytes) -> Damage:
    """Wrong bytes that the header vouches for, the same on every server that has the same bytes. Pure."""
    return Damage(data.translate(_NEXT_BYTE), True, "replaced bytes and digests by the same lie as elsewhere")


class LabService:
    """Offers LabMethods. `restart` is told whether to begin blank."""

    def __init__(self, store: SegmentStore, number: int, restart: Callable[[bool], None]) -> None:
        self._store = store
        self._number = number
        self._restart = restart

    def list_contents(self) -> list[str]:
        return [block.hex() for block in self._ids()]

    def print_content(self) -> str:
        text = "\n".join(f"{block.hex()} {self._judge(block)}" for block in self._ids())
        print(text, file=sys.stderr, flush=True)
        return text

    def corrupt(self, key: str, kind: str = "flip") -> str:
        block = _block_of(key)
        self._store.maintain()
        place = self._store.locate(block)
        with place.path.open("r+b", buffering=0) as file:
            header = _header_at(file.fileno(), place)
            data = os.pread(file.fileno(), header.length, place.payload_offset)
            damage = self._damage(kind, block, header, data)
            if not damage.vouched and block_digest(damage.payload) == header.digest:
                raise InvalidArgument(f"{kind} would change nothing in block {key}; choose another kind")
            os.pwrite(file.fileno(), damage.payload, place.payload_offset)
            if damage.vouched:
                os.pwrite(file.fileno(), _vouching(header, damage.payload), place.header_offset)
        _log.warning("lab: block %s: %s", key, damage.told)
        return f"block {key}: {damage.told}"

    def _damage(self, kind: str, block: bytes, header: Header, data: bytes) -> Damage:
        if not data:
            raise InvalidArgument("an empty block has no bytes to corrupt")
        if kind == "flip":
            return flip(data, header.digest, self._number)
        if kind == "swap":
            return self._swap(block, data)
        kinds = {"torn": torn, "zeros": zeros, "lie": lie}
        if kind not in kinds:
            raise InvalidArgument(f"unknown kind {kind!r}: choose flip, torn, zeros, swap or lie")
        return kinds[kind](data)

    def _swap(self, block: bytes, data: bytes) -> Damage:
        following = [other for other in self._ids(block) if other != block]
        for other in (*following, *self._ids()):
            place = self._store.locate(other)
            with place.path.open("rb") as file:
                bytes_there = os.pread(file.fileno(), place.length, place.payload_offset)
            if bytes_there and (damage := swap(data, other.hex(), bytes_there)).payload != data:
                return damage
        raise InvalidArgument("there is no block with other bytes to swap with; choose another kind")

    def terminate(self) -> bool:
        asyncio.get_running_loop().call_later(_ANSWER_SECONDS, os.kill, os.getpid(), signal.SIGKILL)
        return True

    def restart(self, blank: bool = False) -> bool:
        asyncio.get_running_loop().call_later(_ANSWER_SECONDS, self._restart, blank)
        return True

    def _ids(self, after: bytes = b"") -> Iterator[bytes]:
        while page := self._store.inventory(after, _PAGE):
            yield from (record.block for record in page)
            after = page[-1].block

    def _judge(self, block: bytes) -> str:
        """Say a block's length, and whether its bytes are what its own record says."""
        try:
            place = self._store.locate(block)
            with place.path.open("rb") as file:
                header = _header_at(file.fileno(), place)
            good = self._store.digest(block, 0, 0) == header.digest
            return f"{header.length} {'good' if good else 'corrupt'}"
        except BlockDamaged:
            return f"{place.length} corrupt"
        except BlockError as error:
            return error.message


class LabRefused:
    """What answers LabMethods without --lab."""

    def list_contents(self) -> list[str]:
        raise _lab_only()

    def print_content(self) -> str:
        raise _lab_only()

    def corrupt(self, key: str, kind: str = "flip") -> str:
        raise _lab_only()

    def terminate(self) -> bool:
        raise _lab_only()

    def restart(self, blank: bool = False) -> bool:
        raise _lab_only()


def _lab_only() -> LabOnly:
    return LabOnly("this data server injects no faults; start it with --lab")


def _block_of(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError:
        raise BlockMissing(f"{key!r} is no block id in hex") from None


def _header_at(handle: int, place: Place) -> Header:
    raw = os.pread(handle, HEADER_BYTES, place.header_offset)
    header = decode_header(raw, _segment_number(place.path), place.header_offset)
    if header is None:
        raise BlockDamaged("its header is damaged already")
    return header


def _segment_number(path: Path) -> int:
    return int(path.stem, 16)


def _vouching(header: Header, payload: bytes) -> bytes:
    """Return the header page of a record that says that `payload` is right."""
    page = encode_header(header._replace(digest=block_digest(payload), pieces=piece_digests(payload)))
    assert len(page) == PAGE_BYTES
    return page
