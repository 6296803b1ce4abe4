"""How a slot's answer is kept in the database. Pure; safe in any thread.

The mutating calls answer with nothing or with attributes, so this is all that is needed: no bytes,
or the twelve fields as little-endian 64-bit integers. A change of it is a change of the format.
"""

from __future__ import annotations

import struct

from wire.messages import Attributes

_FIELDS = struct.Struct(f"<{len(Attributes._fields)}q")


def encode(answer: Attributes | None) -> bytes:
    """Return the bytes that stand for an answer."""
    return b"" if answer is None else _FIELDS.pack(*answer)


def decode(packed: bytes) -> Attributes | None:
    """Return the answer that `packed` stands for."""
    return Attributes(*_FIELDS.unpack(packed)) if packed else None
