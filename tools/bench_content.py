"""The bytes that a benchmark writes, known again when they are read. Pure; one thread.

Every page of 4 KiB differs from every other one, in this directory and in all others, and none can be
compressed: no file system can gain by storing one for several.
"""

from __future__ import annotations

import random

PAGE_BYTES = 4096
CHUNK_BYTES = 1 << 20
PAGES_PER_CHUNK = CHUNK_BYTES // PAGE_BYTES
STAMP_BYTES = 8

FILE, SMALL, LOG = 1, 2, 3
"""What a page belongs to: the large file, a small file, the file that is appended to."""


class Content:
    """The pages of one directory: a mebibyte of random bytes, with a stamp of its own on each page.

    Args:
        seed: the same seed gives the same bytes in any process.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._base = random.Random(seed).randbytes(CHUNK_BYTES)

    def page(self, kind: int, number: int, version: int = 0) -> bytes:
        """Return a page of 4 KiB: page or file `number` of a kind, rewritten `version` times."""
        start = number % PAGES_PER_CHUNK * PAGE_BYTES
        return _stamp(kind, number, version) + self._base[start + STAMP_BYTES : start + PAGE_BYTES]

    def buffer(self) -> bytearray:
        """Return a buffer for `fill`."""
        return bytearray(self._base)

    def fill(self, buffer: bytearray, first_page: int, versions: dict[int, int]) -> None:
        """Make `buffer`, which came from here, the chunk of the large file that starts at a page."""
        for index in range(PAGES_PER_CHUNK):
            number = first_page + index
            start = index * PAGE_BYTES
            buffer[start : start + STAMP_BYTES] = _stamp(FILE, number, versions.get(number, 0))


def _stamp(kind: int, number: int, version: int) -> bytes:
    return (kind << 56 | version << 40 | number).to_bytes(STAMP_BYTES, "big")
