"""What happened, in JSON lines: time (seconds since the start), what, detail. Thread-safe."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Timeline:
    """Writes events as they happen, and counts them by kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self._file = path.open("w", buffering=1)
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def __call__(self, what: str, **detail: Any) -> None:
        """Write one event."""
        with self._lock:
            self.counts[what] += 1
            event = {"time": round(self.seconds(), 3), "what": what, "detail": detail}
            self._file.write(json.dumps(event, default=str) + "\n")

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def close(self) -> None:
        """No more events."""
        self._file.close()
