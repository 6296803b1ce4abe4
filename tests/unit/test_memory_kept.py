"""Memory that one thread has freed is there for all others, and given back when nobody needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

PROGRAM = """
import ctypes, sys, threading
from wire.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
together = threading.Barrier(4)

def work():
    together.wait()
    held = [bytearray(1 << 20) for _ in range(8)]
    together.wait()
    del held
    together.wait()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""
"""Prints what malloc_info(3) tells, in which each heap has a line."""


def heaps(word: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.count("<heap ")


def test_all_threads_have_one_heap() -> None:
    assert heaps("kept") == 1
    assert heaps("as it is") > 1, "the threads of this test would have had one heap anyway"


UNNEEDED = """
import resource, sys
from pathlib import Path
from wire.memory import LOOKS, Unneeded, keep_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

keep_freed_memory()
unneeded = Unneeded()
held = [b'x' * (1 << 20) for _ in range(400)]
needed = held[::10]
del held
before = resident_mib()
for look in range(4 * LOOKS):
    in_use = [b'x' * (1 << 20) for _ in range(360)] if sys.argv[1] == "used" and look % LOOKS == 1 else []
    unneeded.look()
    del in_use
print(before, resident_mib(), len(needed))
"""
"""Prints how much is resident of what was used, and of what is left of it after some looks."""


@pytest.mark.parametrize("word", ["idle", "used"])
def test_what_nobody_needs_is_given_back(word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNNEEDED, word], cwd=ROOT, check=True, capture_output=True, text=True
    )
    before, after, _ = map(int, done.stdout.split())
    assert before > 390
    if word == "idle":
        assert after < 150
    else:
        assert after > 390, "what was in use again between two looks was given back"
