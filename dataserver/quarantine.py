"""Copies that lost a vote, kept as they were, each with a note why; the oldest go when there are too many.

One pair of files a copy, named after its contents, so that keeping it again changes nothing. Safe in any
thread.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dataserver.durable import write_file
from wire.digest import piece_digest
from wire.directories import sync_directory
from wire.errors import BlockMissing, InvalidArgument

DAY_SECONDS = 86_400.0
PAGE = 1000
_NAME = re.compile(r"[0-9a-f]{2,64}-[0-9a-f]{16}")

_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """How old a copy is (seconds since the epoch), and how many bytes it has on disk."""

    since: float
    length: int


def too_many(kept: dict[str, Kept], now: float, most_bytes: int, most_seconds: float) -> list[str]:
    """Return the copies that must go, oldest first: those over the age, then until the rest fits the size."""
    total = sum(copy.length for copy in kept.values())
    going = []
    for name, copy in sorted(kept.items(), key=lambda item: (item[1].since, item[0])):
        if now - copy.since <= most_seconds and total <= most_bytes:
            break
        going.append(name)
        total -= copy.length
    return going


class Quarantine:
    """The quarantine directory of a data server."""

    def __init__(
        self, directory: Path, most_bytes: int = 1024**3, most_seconds: float = 90 * DAY_SECONDS
    ) -> None:
        self._directory = directory
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._lock = threading.RLock()
        self._opened_at, self._opened = time.time(), time.monotonic()
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
        for draft in directory.glob("*.tmp"):
            draft.unlink()
        self._kept: dict[str, Kept] = {}
        for file in directory.glob("*.raw"):
            if _NAME.fullmatch(file.stem):  # others are somebody's own
                found = file.stat()
                self._kept[file.stem] = Kept(found.st_mtime, found.st_size)
        for note in directory.glob("*.json"):
            if _NAME.fullmatch(note.stem) and note.stem not in self._kept:
                note.unlink()  # a kill came before its copy was there, or after it was removed

    def _now(self) -> float:
        """Return the time by which ages are counted: nothing gets old by the date being set."""
        return self._opened_at + time.monotonic() - self._opened

    @property
    def count(self) -> int:
        """How many losing copies are kept."""
        return len(self._kept)

    @property
    def length(self) -> int:
        """How many bytes they have."""
        with self._lock:
            return sum(copy.length for copy in self._kept.values())

    def keep(self, block: bytes, raw: bytes, expected: bytes, found: bytes | None, note: str) -> None:
        """Keep a losing copy, durably.

        Args:
            block: its id.
            raw: the record as it is on disk: its header's page, then its bytes.
            expected: the digest that it should have had.
            found: the digest that its bytes have, None if its header is damaged or they cannot be read.
            note: why it lost, for people.

        Raises:
            OSError: nothing was kept.
        """
        stem = f"{block.hex()}-{piece_digest(raw)[:8].hex()}"
        raw_path = self._directory / f"{stem}.raw"
        with self._lock:
            if stem in self._kept:
                return
            told = {
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "block": block.hex(),
                "expected_digest": expected.hex(),
                "found_digest": found.hex() if found is not None else None,
                "raw": "the record's header (4096 bytes), then the block's bytes",
                "note": note,
            }
            told_path = raw_path.with_suffix(".json")
            write_file(told_path, json.dumps(told, indent=1).encode())
            try:
                write_file(raw_path, raw)
            except OSError:
                with suppress(OSError):
                    told_path.unlink(missing_ok=True)
                    raw_path.unlink(missing_ok=True)
                raise
            self._kept[stem] = Kept(self._now(), len(raw))

    def page(self, after: str, limit: int) -> list[dict[str, Any]]:
        """Return what is known of up to `limit` copies, in the order of their names, all after `after`."""
        with self._lock:
            names = sorted(name for name in self._kept if name > after)[: min(max(limit, 0), PAGE)]
            return [{**self._told(name), "name": name, "bytes": self._kept[name].length} for name in names]

    def _told(self, name: str) -> dict[str, Any]:
        try:
            told = json.loads((self._directory / f"{name}.json").read_bytes())
        except (OSError, ValueError) as error:
            return {"note": f"its note cannot be read: {error}", "block": name.partition("-")[0]}
        return told if isinstance(told, dict) else {}

    def read(self, name: str) -> bytes:
        """Return a copy as it was on disk: its header's page, then its bytes. Raises BlockMissing."""
        with self._lock:
            try:
                return self._path(name).read_bytes()
            except OSError as error:
                raise BlockMissing(f"{name} is not in quarantine here: {error.strerror}") from None

    def remove(self, names: list[str]) -> int:
        """Destroy copies; return how many were here. Raises InvalidArgument for what cannot be a name."""
        removed = 0
        with self._lock:
            for path in [self._path(name) for name in names]:
                removed += self._kept.pop(path.stem, None) is not None
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
        return removed

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidArgument("a copy's name is its block and its digest, as the list gives it")
        return self._directory / f"{name}.raw"

    def trim(self) -> int:
        """Destroy the copies that are too old, and the oldest while they are too large; return how many."""
        with self._lock:
            going = too_many(self._kept, self._now(), self._most_bytes, self._most_seconds)
            removed = self.remove(going)
        if removed:
            _log.info("%d old copies left the quarantine", removed)
        return removed
