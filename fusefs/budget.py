"""How many dirty bytes a mount has, and the wait for room. No I/O; safe in any thread."""

from __future__ import annotations

import threading


class Budget:
    """The dirty bytes of the whole mount, in buffers and in uploads that are not acknowledged."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used = self._waiting = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def take(self, count: int) -> None:
        with self._lock:
            self._used += count

    def give_back(self, count: int) -> None:
        if count:
            with self._lock:
                self._used -= count
                if self._waiting:
                    self._changed.notify_all()

    @property
    def used(self) -> int:
        return self._used

    def is_exceeded(self) -> bool:
        return self._used > self.limit_bytes

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until the limit is kept again, at most so long; tell whether it is."""
        with self._lock:
            self._waiting += 1
            try:
                return self._changed.wait_for(lambda: self._used <= self.limit_bytes, seconds)
            finally:
                self._waiting -= 1
