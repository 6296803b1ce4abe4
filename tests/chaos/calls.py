"""What the load counts: calls, failed calls, the longest, bytes checked, what was wrong. Thread-safe."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fusefs.operations.limits import limit_seconds
from tests.chaos.cluster import DEADLINES

GRACE_SECONDS = 3.0
"""What a busy machine may add to a deadline."""
LIMIT_SECONDS = {
    # A walk of the path, then the call itself; each may just make it but the last.
    "name": 2 * limit_seconds("lookup", DEADLINES) + GRACE_SECONDS,
    "lock": limit_seconds("setlk", DEADLINES) + GRACE_SECONDS,
    "read": limit_seconds("read", DEADLINES) + GRACE_SECONDS,
    "write": limit_seconds("write", DEADLINES) + GRACE_SECONDS,
}
"""How long a system call may take, by its class."""
SHOWN = 20
NO_FAILURES = ("", "ENOENT", "EAGAIN")
"""Answers, and no failures: there is no such file; somebody else has the lock."""


class Calls:
    """The figures of one load process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.longest: dict[str, float] = {}
        self.late: list[str] = []
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self.done: Counter[str] = Counter()
        self.bytes_checked = 0

    @contextmanager
    def timed(self, kind: str, what: str) -> Iterator[None]:
        """Count the system call in the block; its kind is one of LIMIT_SECONDS, or is not limited."""
        start, failed = time.monotonic(), ""
        try:
            yield
        except OSError as error:
            failed = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise
        except sqlite3.Error:
            failed = "SQLite"
            raise
        finally:
            seconds = time.monotonic() - start
            with self._lock:
                self.calls[kind] += 1
                self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))
                if failed not in NO_FAILURES:
                    self.failed[failed] += 1
                if seconds > LIMIT_SECONDS.get(kind, float("inf")):
                    self.late.append(f"{kind} {what}: {seconds:.1f} s, {failed or 'succeeded'}")

    def checked(self, size: int) -> None:
        """Count bytes that were read and right."""
        with self._lock:
            self.bytes_checked += size

    def completed(self, work: str) -> None:
        """Count a piece of work that was acknowledged."""
        with self._lock:
            self.done[work] += 1

    def is_wrong(self, text: str) -> None:
        """Note something that no fault excuses."""
        with self._lock:
            self.wrong.append(f"{time.time():.3f} {text}")

    def is_lost(self, text: str) -> None:
        """Note something acknowledged that is not there."""
        with self._lock:
            self.lost.append(f"{time.time():.3f} {text}")

    def plain(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        with self._lock:
            return {
                "calls": dict(self.calls),
                "failed": dict(self.failed),
                "longest_seconds": {kind: round(seconds, 3) for kind, seconds in self.longest.items()},
                "late": self.late[:SHOWN],
                "wrong": self.wrong[:SHOWN],
                "lost": self.lost[:SHOWN],
                "done": dict(self.done),
                "bytes_checked": self.bytes_checked,
            }


def add_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several processes as one's."""
    longest: dict[str, float] = {}
    for part in parts:
        for kind, seconds in part["longest_seconds"].items():
            longest[kind] = max(seconds, longest.get(kind, 0.0))
    return {
        **{
            name: dict(sum((Counter(p[name]) for p in parts), Counter()))
            for name in ("calls", "failed", "done")
        },
        "longest_seconds": longest,
        **{name: [line for part in parts for line in part[name]] for name in ("late", "wrong", "lost")},
        "bytes_checked": sum(part["bytes_checked"] for part in parts),
    }
