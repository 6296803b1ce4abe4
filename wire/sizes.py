"""How much memory the values of a message take, roughly and rather too much. Pure; safe in any thread."""

from __future__ import annotations

from typing import Any

VALUE_BYTES = 64
"""What a value takes beside the bytes or characters that it has: an empty list, or an integer in a list."""


def memory_bytes(value: Any) -> int:
    """Return how much memory a value takes, with all that is in it."""
    if isinstance(value, bytes | bytearray | memoryview | str):
        return VALUE_BYTES + len(value)
    if isinstance(value, dict):
        return VALUE_BYTES + sum(memory_bytes(name) + memory_bytes(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return VALUE_BYTES + sum(map(memory_bytes, value))
    return VALUE_BYTES
