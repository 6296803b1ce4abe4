"""The format of SQLite's log and of the memory that its connections share; sums of one page computed anew.

SQLite itself compares the sums after a restart only. A frame has a header of 24 bytes (page number, size of
the database after a commit, two salts, two sums) and the page. The sums s0, s1 go on from the frame before:
for each pair of words x0, x1 of the header's first 8 bytes and of the page,

    s0 = s0 + x0 + s1        s1 = s1 + x1 + s0        (modulo 2^32)

A page has 512 pairs, too many for a loop. As the step is linear, (s0, s1) <- M (s0, s1) + (x0, x0 + x1),
the pairs lie side by side in two long integers, 64 bits each, and are folded: the earlier half, times a
power of M, is added to the later half. Pure functions, for any thread.
Sources: https://www.sqlite.org/fileformat2.html#walformat and https://www.sqlite.org/walformat.html
"""

from __future__ import annotations

import struct
from typing import NamedTuple

LOG_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
PAGE_BYTES = 4096
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES

_FRAME = struct.Struct(">8s8sII")
_LOG = struct.Struct(">IIII8sII")
_MAGIC, _BIG_ENDIAN = 0x377F0682, 1
_VERSION = 3007000
SHARED_HEADER = struct.Struct("=13x?2xI12x8s8x")
"""What the shared memory says first, and then once more, in this machine's byte order: whether the words of
the sums are big-endian, how many frames are committed, the salts of the log."""
_INDEX_HEADER_BYTES = 136
_INDEX_HEADER_WORDS = _INDEX_HEADER_BYTES // 4
_INDEX_REST_BYTES = 16 * 1024
"""What follows 4096 page numbers in the shared memory."""
_PAIRS = PAGE_BYTES // 8
_LEFT = 16
"""So many pairs are left to a loop when the rest was folded into them."""
_WORD = 0xFFFFFFFF
_LANES = struct.Struct(f"<{_LEFT}Q")

Sums = tuple[int, int]
Matrix = tuple[int, int, int, int]


class LogHeader(NamedTuple):
    """The first bytes of a log: what its frames carry, and where their sums begin."""

    salts: bytes
    sums: Sums
    big_endian: bool


def _power(steps: int) -> Matrix:
    """Return what so many steps without new words do to (s0, s1): the rows of a matrix."""
    a, b, c, d = 1, 0, 0, 1
    for _ in range(steps):
        a, b, c, d = (a + b) & _WORD, (a + 2 * b) & _WORD, (c + d) & _WORD, (c + 2 * d) & _WORD
    return a, b, c, d


def _every_other_word(pairs: int) -> int:
    return sum(_WORD << 64 * pair for pair in range(pairs))


_WORDS = _every_other_word(_PAIRS)
_FOLDS: list[tuple[int, int, Matrix]] = []
"""For each fold: the bits of a half, which of them are words, and what its later half does to the earlier."""
_half = _PAIRS // 2
while _half >= _LEFT:
    _FOLDS.append((64 * _half, _every_other_word(_half), _power(_half)))
    _half //= 2


def add_words(sums: Sums, data: bytes, big_endian: bool = False) -> Sums:
    """Return the sums after some words: a multiple of 8 bytes, by the plain loop."""
    s0, s1 = sums
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & _WORD
        s1 = (s1 + x1 + s0) & _WORD
    return s0, s1


def add_page(sums: Sums, page: bytes, big_endian: bool = False) -> Sums:
    """Return the sums after a page of PAGE_BYTES bytes: the same as add_words, five times as fast."""
    if big_endian:
        page = struct.pack(f"<{PAGE_BYTES // 4}I", *struct.unpack(f">{PAGE_BYTES // 4}I", page))
    both = int.from_bytes(page, "little")
    first = both & _WORDS
    second = (first + ((both >> 32) & _WORDS)) & _WORDS
    for bits, words, (a, b, c, d) in _FOLDS:
        low, low_second = first & words, second & words
        first = ((a * low & words) + (b * low_second & words) + (first >> bits)) & words
        second = ((c * low & words) + (d * low_second & words) + (second >> bits)) & words
    s0, s1 = sums
    lanes = first.to_bytes(8 * _LEFT, "little"), second.to_bytes(8 * _LEFT, "little")
    a, b, c, d = _BEFORE_LANES
    s0, s1 = a * s0 + b * s1, c * s0 + d * s1
    for x0, x1 in zip(_LANES.unpack(lanes[0]), _LANES.unpack(lanes[1]), strict=True):
        s0, s1 = (s0 + s1 + x0) & _WORD, (s0 + 2 * s1 + x1) & _WORD
    return s0, s1


_BEFORE_LANES = _power(_PAIRS - _LEFT)
"""What the pairs that were folded away do to the sums from before the page."""


def decode_log_header(raw: bytes) -> LogHeader | None:
    """Return the header of a log; None if it is no header, or damaged."""
    if len(raw) < LOG_HEADER_BYTES:
        return None
    magic, version, page_bytes, _, salts, *written = _LOG.unpack(raw[:LOG_HEADER_BYTES])
    big_endian = bool(magic & _BIG_ENDIAN)
    sums = add_words((0, 0), raw[:FRAME_HEADER_BYTES], big_endian)
    if magic & ~_BIG_ENDIAN != _MAGIC or version != _VERSION or page_bytes != PAGE_BYTES:
        return None
    return LogHeader(salts, sums, big_endian) if sums == tuple(written) else None


def count_restarts(before: bytes, after: bytes) -> int:
    """Return how often a log with the salts `before` was begun over until it had `after`, modulo 2^32.

    SQLite adds one to the first salt each time. The second is random, so both are needed to tell that two are
    the same; and a log begun where there was none has two random ones, so that the number says nothing.
    """
    return (int.from_bytes(after[:4], "big") - int.from_bytes(before[:4], "big")) & _WORD


def number_offset(frame: int) -> int:
    """Return where the shared memory has the page number of a frame (from 1), a 32-bit word.

    Each 32 KiB of it begin with the page numbers of 4096 frames; the first also has a header.
    """
    return (
        4 * (frame - 1)
        + _INDEX_HEADER_BYTES
        + _INDEX_REST_BYTES * ((frame + _INDEX_HEADER_WORDS - 1) // 4096)
    )


def is_as_written(page: bytes, number: int, header: bytes, before: bytes, log: LogHeader) -> bool:
    """Tell whether a page of the log is the one for which its frame's header was written.

    Args:
        page: what was read.
        number: of the page that this frame should have.
        header: the 24 bytes before it.
        before: the 8 bytes of sums of the frame before it, or of the log's header.
        log: what all frames of this log carry, and how they are added up; its sums are not looked at.
    """
    described, salts, *written = _FRAME.unpack(header)
    if salts != log.salts or int.from_bytes(described[:4], "big") != number or len(page) != PAGE_BYTES:
        return False
    big_endian = log.big_endian
    s0, s1 = struct.unpack(">II", before)
    return add_page(add_words((s0, s1), described, big_endian), page, big_endian) == tuple(written)
