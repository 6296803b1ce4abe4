"""What a data server remembers for its mediator across restarts: how far its scrub is. A small file.

It knows nothing of what it keeps but its size. One thread at a time.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from dataserver.durable import write_file
from wire.errors import BadRequest, NoSpace

SCRUB_NAME = "scrub.json"
MOST_BYTES = 16 * 1024

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
