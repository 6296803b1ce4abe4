"""What a data server remembers for its mediator across restarts: how far its scrub, and the metadata, is.

Two small files. It knows nothing of what they mean. One thread at a time.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

from dataserver.durable import write_file
from wire.errors import BadRequest, NoSpace
from wire.messages import Milestone

SCRUB_NAME = "scrub.json"
MILESTONES_NAME = "milestones.json"
MOST_BYTES = 16 * 1024
MOST_DATABASES = 16
"""Of so many databases the milestone is kept: one that was begun in another's place must not hide it."""
NAME_CHARACTERS = 64

_log = logging.getLogger(__name__)


class ScrubMark:
    """The file scrub.json of a data server's directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / SCRUB_NAME
        self.value = self._read()
        """What was kept last; empty at first."""

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read: scrubbing begins anew: %s", self._path, error)
            return {}
        return found if isinstance(found, dict) else {}

    def keep(self, value: dict[str, Any]) -> None:
        """Keep plain data, durably, in place of what was kept before. Raises BadRequest, NoSpace."""
        try:
            packed = json.dumps(value).encode()
        except (TypeError, ValueError) as error:
            raise BadRequest(f"this cannot be kept: {error}") from None
        if len(packed) > MOST_BYTES:
            raise BadRequest(f"at most {MOST_BYTES} bytes are kept of a scrub")
        try:
            write_file(self._path, packed)
        except OSError as error:
            raise NoSpace(f"how far the scrub is cannot be kept: {error.strerror}") from None
        self.value = value


class Milestones:
    """The file milestones.json of a data server's directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MILESTONES_NAME
        self._kept = self._read()
        """By database, the one that was told of last at the end."""

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_bytes())
            kept = {str(name): int(number) for name, number in found["milestones"].items()}
            if _checksum(kept) != found["checksum"]:
                raise ValueError("it is damaged")
            return kept
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _log.warning("%s cannot be read: how far the metadata was is forgotten: %s", self._path, error)
            return {}

    def all(self) -> list[Milestone]:
        """Return the highest that was kept of each database."""
        return [Milestone(name, number) for name, number in self._kept.items()]

    def keep(self, milestone: Milestone) -> None:
        """Keep a milestone durably, unless a higher one is. Raises BadRequest, NoSpace."""
        name, number = milestone
        if not 0 < len(name) <= NAME_CHARACTERS or not 0 <= number < 2**63:
            raise BadRequest("this is no milestone of a metadata database")
        if number <= self._kept.get(name, -1):
            return
        kept = {**self._kept}
        kept.pop(name, None)
        kept = dict([*kept.items(), (name, number)][-MOST_DATABASES:])
        try:
            write_file(self._path, json.dumps({"milestones": kept, "checksum": _checksum(kept)}).encode())
        except OSError as error:
            raise NoSpace(f"how far the metadata is cannot be kept: {error.strerror}") from None
        self._kept = kept


def _checksum(kept: dict[str, int]) -> int:
    """Return what tells that no bit was changed: a number that is too high ends everybody's sessions."""
    return zlib.crc32(json.dumps(kept).encode())
