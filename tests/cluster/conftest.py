"""What holds for all tests with real processes."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def whole_in_the_end(whole: None) -> None:
    """Every cluster of these tests must be whole when they end."""
