"""Memory that one thread has freed is there for all others."""

from __future__ import annotations

import subprocess
import sys

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
