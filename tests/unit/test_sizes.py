"""How much memory the values of a message take."""

from __future__ import annotations

from typing import Any

import pytest

from wire.messages import Ticket
from wire.sizes import VALUE_BYTES, memory_bytes


@pytest.mark.parametrize(
    ("value", "values", "more_bytes"),
    [
        (None, 1, 0),
        (True, 1, 0),
        (2**63, 1, 0),
        (b"12345", 1, 5),
        (memoryview(b"12345"), 1, 5),
        ("123", 1, 3),
        ([], 1, 0),
        ([[], [[]], b"1"], 5, 1),
        ((1, (2, [3, "4"])), 7, 1),
        (Ticket(1, 2, 3), 4, 0),
        ({"name": [1, 2], "x": {}}, 7, 5),
    ],
)
def test_what_a_value_takes(value: Any, values: int, more_bytes: int) -> None:
    assert memory_bytes(value) == values * VALUE_BYTES + more_bytes


def test_a_deep_value_is_measured_to_its_end() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert memory_bytes(value) == 100_001 * VALUE_BYTES
    while value:
        value = value.pop()
