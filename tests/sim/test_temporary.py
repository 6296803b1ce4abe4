"""What a client with a temporary file takes for a loss: bytes that are gone with nobody told."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sim.temporary import SLOT, Temporary
from wire.errors import NoSpace


class ForgetfulPlace:
    """Takes writes, and has none of them; `error`: what it will tell about that."""

    def __init__(self, error: NoSpace | None) -> None:
        self.slots = {SLOT: SimpleNamespace(error=error)}
        self.filesystem = SimpleNamespace(_namespace=SimpleNamespace(_session=SimpleNamespace(number=1)))

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        return b""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize("error", [None, NoSpace("full")])
def test_bytes_may_go_if_the_program_is_told(error: NoSpace | None) -> None:
    problems: list[str] = []
    failed: list[str] = []
    world = SimpleNamespace(
        problem=problems.append,
        note=lambda kind, text: failed.append(f"{kind}: {text}"),
        power_losses=0,
        put_backs=SimpleNamespace(count=0),
        scheduler=SimpleNamespace(sleep=lambda seconds: None),
    )
    used = Temporary(world, "home", random.Random(1))
    for _ in range(8):
        used.use(ForgetfulPlace(error))  # type: ignore[arg-type]
    assert bool(problems) == (error is None)
    assert bool(failed) == (error is not None)
