"""How much memory the values of a message take, roughly and rather too much. Pure; safe in any thread."""

from __future__ import annotations

from typing import Any

VALUE_BYTES = 64
"""What a value takes beside the bytes or characters that it has: an empty list, or an integer in a list."""
_BYTES = (bytes, bytearray, memoryview, str)
_LISTS = (list, tuple)


def memory_bytes(value: Any) -> int:
    """Return how much memory a value takes, with all that is in it.

    Each call that is not answered at once is measured with it: so it is a loop, and not recursive.
    """
    total, values = 0, [value]
    for each in values:  # which grows by what is found
        total += VALUE_BYTES
        if type(each) is int or each is None:
            continue
        if isinstance(each, _BYTES):
            total += len(each)
        elif isinstance(each, _LISTS):
            values += each
        elif isinstance(each, dict):
            values += each.keys()
            values += each.values()
    return total
