"""What a call had is freed when it is answered, not when the garbage collector comes: also if it failed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.contract.wire_support import IDENTITY, LoopThread, make_caller
from tests.support import wait_until
from wire.config import Encoding
from wire.errors import NoSpace
from wire.methods import BookkeepingMethods
from wire.server import Server


class Held:
    """What a call had."""


class Failing:
    """Fails at once or later; notes what it had."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Held]] = []

    async def renew(self, session: int) -> None:
        held = Held()
        self.held.append(weakref.ref(held))
        if session:
            await asyncio.sleep(0.01)
        raise NoSpace("no room")


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("later", [0, 1])
def test_what_a_call_had_that_failed_is_freed(
    loop: LoopThread, rpc: Encoding, kind: str, later: int, without_collector: None
) -> None:
    failing = Failing()

    async def make() -> tuple[Server, str]:
        server = Server(IDENTITY)
        server.register(BookkeepingMethods, failing, only=["renew"])
        return server, await server.start("127.0.0.1:0")

    server, address = loop.run(make())
    caller = make_caller(kind, loop, address, rpc)
    for _ in range(3):
        with pytest.raises(NoSpace):
            caller.call(10, BookkeepingMethods.renew, later)
    wait_until(lambda: not any(held() for held in failing.held), 5, "what they had is freed")
    caller.close()
    loop.run(server.drain())
