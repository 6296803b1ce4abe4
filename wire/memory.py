"""How a process keeps its memory: what was freed is used again, not given back and fetched anew.

A block's megabyte that goes back to the kernel when it is freed costs some 250 page faults, half a
millisecond, to have again. By itself glibc gives threads heaps of their own, sixteen with two cores: what
one thread has freed another cannot use, and a mount with 256 MiB of buffers came to hold 530. The threads
wait for Python's own lock anyway, so that one heap is enough. Called once, when a process begins, before
its first other thread. Elsewhere than with glibc it does nothing.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""
KEPT_BYTES = 32 * 1024 * 1024
"""The most that is kept at the heap's end."""
LEAST_MAPPED_BYTES = 8 * 1024 * 1024
"""From here on an object has a mapping of its own, which goes when it is freed."""


def keep_freed_memory() -> None:
    """Have malloc keep what blocks in flight need from moment to moment, in one heap for all threads."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, LEAST_MAPPED_BYTES)
        mallopt(_ARENA_MAX, 1)
