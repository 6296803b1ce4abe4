"""Copies that lost a vote, kept as they were, each with a note why.

One pair of files a copy, named after its contents, so that keeping it again changes nothing. Safe in
any thread, one `keep` at a time.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from dataserver.durable import sync_directory, write_file
from wire.digest import piece_digest


class Quarantine:
    """The quarantine directory of a data server."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
        for draft in directory.glob("*.tmp"):
            draft.unlink()
        self._count = sum(1 for _ in directory.glob("*.raw"))

    @property
    def count(self) -> int:
        """How many losing copies are kept."""
        return self._count

    def keep(self, block: bytes, raw: bytes, expected: bytes, found: bytes | None, note: str) -> None:
        """Keep a losing copy, durably.

        Args:
            block: its id.
            raw: the record as it is on disk: its header's page, then its bytes.
            expected: the digest that it should have had.
            found: the digest that its bytes have, None if its header is damaged.
            note: why it lost, for people.

        Raises:
            OSError: nothing was kept.
        """
        stem = f"{block.hex()}-{piece_digest(raw)[:8].hex()}"
        raw_path = self._directory / f"{stem}.raw"
        if raw_path.exists():
            return
        told = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "block": block.hex(),
            "expected_digest": expected.hex(),
            "found_digest": found.hex() if found is not None else None,
            "raw": "the record's header (4096 bytes), then the block's bytes",
            "note": note,
        }
        write_file(raw_path.with_suffix(".json"), json.dumps(told, indent=1).encode())
        write_file(raw_path, raw)
        self._count += 1
