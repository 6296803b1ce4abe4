"""How an error's detail crosses in XML-RPC: as JSON in a header of the HTTP answer.

A fault has two members by the standard, and a stock client refuses a third. A detail of over
16 KiB is left out, and said so. Pure; safe in any thread.
"""

from __future__ import annotations

import json
from typing import Any

HEADER = "Quorumfs-Fault-Detail"
LONGEST_BYTES = 16 * 1024


def pack_detail(detail: dict[str, Any]) -> str:
    """Return a detail as one line of ASCII."""
    packed = json.dumps(detail, default=str)
    return packed if len(packed) <= LONGEST_BYTES else json.dumps({"omitted_bytes": len(packed)})


def unpack_detail(packed: str | None) -> dict[str, Any]:
    """Return the detail that a header carries; an absent or odd one is empty."""
    try:
        detail = json.loads(packed) if packed and len(packed) <= LONGEST_BYTES else {}
    except (ValueError, RecursionError):
        return {}
    return detail if type(detail) is dict else {}
