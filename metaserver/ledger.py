"""The ledger of repairs: lines of JSON that are only ever appended, in two files of a bounded size.

It is kept here because the mediator keeps nothing. In the event loop's thread only; a power loss may take the
last lines, which says less about the past and nothing wrong.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wire.errors import InvalidArgument

MOST_FILE_BYTES = 8 * 1024 * 1024
MOST_LINE_BYTES = 4096
MOST_ENTRIES = 4096
"""The most entries that one call brings or returns."""

logger = logging.getLogger("metaserver")


class Ledger:
    """The files ledger.jsonl and, before it, ledger.old.jsonl in a directory."""

    def __init__(self, directory: Path, most_file_bytes: int = MOST_FILE_BYTES) -> None:
        self._new = directory / "ledger.jsonl"
        self._old = directory / "ledger.old.jsonl"
        self._most_file_bytes = most_file_bytes

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Append entries.

        Raises:
            InvalidArgument: too many, or one that is too long or no plain data; nothing was appended.
        """
        if len(entries) > MOST_ENTRIES:
            raise InvalidArgument(f"at most {MOST_ENTRIES} entries at once")
        try:
            lines = [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries]
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"an entry cannot be kept: {error}") from None
        if any(len(line) > MOST_LINE_BYTES for line in lines):
            raise InvalidArgument(f"an entry has at most {MOST_LINE_BYTES} bytes")
        try:
            self._write(b"".join(lines))
        except OSError as error:
            logger.warning("%d repairs are missing in the ledger: %s", len(lines), error)

    def _write(self, lines: bytes) -> None:
        if self._new.exists() and self._new.stat().st_size + len(lines) > self._most_file_bytes:
            self._new.replace(self._old)
        with self._new.open("ab") as file:
            if file.tell() and not self._ends_a_line():
                file.write(b"\n")
            file.write(lines)

    def _ends_a_line(self) -> bool:
        with self._new.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` entries, newest first; lines that cannot be read are left out."""
        found: list[dict[str, Any]] = []
        for file in (self._new, self._old):
            if len(found) >= limit or not file.exists():
                continue
            for line in reversed(file.read_bytes().splitlines()):
                if len(found) >= min(limit, MOST_ENTRIES):
                    break
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    found.append(entry)
        return found
