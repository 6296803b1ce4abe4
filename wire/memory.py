"""How a process keeps its memory: what was freed is used again, not given back and fetched anew.

A block's megabyte that goes back to the kernel when it is freed costs some 250 page faults, half a
millisecond, to have again. By itself glibc gives threads heaps of their own, sixteen with two cores: what
one thread has freed another cannot use, and a mount with 256 MiB of buffers came to hold 530. The threads
wait for Python's own lock anyway, so that one heap is enough. `keep_freed_memory` is called once, when a
process begins, before its first other thread. What nobody has needed for a while can be given back
(`Unneeded`), by any thread, one at a time. Elsewhere than with glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import threading
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


LOOK_SECONDS, LOOKS = 4.0, 3
LEAST_GIVEN_BYTES = 2 * KEPT_BYTES
"""So much must have been free at each of so many looks. Then what is whole pages of it is given back: a mount
that has written at full speed has some 120 MiB between what it goes on using, which malloc keeps for ever."""


class _Heap(ctypes.Structure):
    """What mallinfo2(3) tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena_bytes",
            "free_chunks",
            "fast_chunks",
            "maps",
            "mapped_bytes",
            "_unused",
            "fast_bytes",
            "used_bytes",
            "free_bytes",
            "end_bytes",
        )
    ]


class Unneeded:
    """Gives back what was freed and is not used again."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.mallinfo2.restype = _Heap
        self._quiet_looks = 0

    def look(self) -> bool:
        """Look how much is free, and give it back if that was much LOOKS times; return whether it was."""
        much = self._libc.mallinfo2().free_bytes >= LEAST_GIVEN_BYTES
        self._quiet_looks = self._quiet_looks + 1 if much else 0
        if self._quiet_looks < LOOKS:
            return False
        self._quiet_looks = 0
        self._libc.malloc_trim(ctypes.c_size_t(KEPT_BYTES))
        return True


def give_back_unneeded_memory() -> None:
    """Start a thread that looks every LOOK_SECONDS, until the process ends."""
    with suppress(OSError, AttributeError):
        unneeded = Unneeded()
        threading.Thread(target=_look_for_ever, args=(unneeded,), name="memory", daemon=True).start()


def _look_for_ever(unneeded: Unneeded) -> None:
    pause = threading.Event()
    while not pause.wait(LOOK_SECONDS):
        unneeded.look()
