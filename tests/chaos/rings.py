"""How many changes the mounts have told without a call, as the heads of their rings say.

A thread of its own; what is told between its last look and the end of a ring is not counted.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

from wire.ring_head import CHANGES, HEAD_READ_BYTES, SHARED_MEMORY, prefix, unpack_head

LOOK_SECONDS = 0.1


class RingWatch:
    """Looks at the rings of one metadata server's directory within its context."""

    def __init__(self, directory: Path, shared_memory: Path = SHARED_MEMORY) -> None:
        self._shared_memory, self._prefix = shared_memory, prefix(directory, CHANGES)
        self._most: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Note how many changes were carried out of each ring that is there."""
        for path in self._shared_memory.glob(f"{self._prefix}*"):
            try:
                with path.open("rb", buffering=0) as file:
                    head = unpack_head(file.read(HEAD_READ_BYTES))
            except FileNotFoundError:
                continue
            if head is not None:
                self._most[path.name] = max(head.taken, self._most.get(path.name, 0))

    @property
    def told(self) -> int:
        """How many changes were told, of all sessions."""
        return sum(self._most.values())
