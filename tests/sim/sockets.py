"""The blocking client's simulated socket: answers may be lost, and requests arrive twice. One thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wire.client import Client
from wire.errors import QuorumfsError, Unavailable
from wire.messages import Ticket

if TYPE_CHECKING:
    from tests.sim.cluster import World

LATE_SECONDS, LATE_LOCK_SECONDS = 2.0, 8.0
"""A request that arrives twice comes the second time at most so much later; one about locks may come after a
restart of the metadata server, which forgets their answers."""
LOCK_CALLS = {"set_lock", "unlock", "reclaim"}


WITHOUT_TICKET = {"reclaim", "close", "tell_open", "abandon_blocks", "open", "close_session"}
"""Calls that change what the metadata server remembers, though each of them may be made more than once."""


def _changes(name: str, params: Sequence[Any]) -> bool:
    """Tell whether a call changes something: it has a ticket, or needs none."""
    has_ticket = (
        bool(params) and isinstance(params[0], list | tuple) and len(params[0]) == len(Ticket._fields)
    )
    return has_ticket or name in WITHOUT_TICKET


def socket_type(world: World) -> type:
    """Return what stands for the blocking client's socket: the asyncio client, waited for."""

    class SimSocket:
        def __init__(self, address: Any, connect_seconds: float, look: Any, until: float) -> None:
            self._address = str(address)
            self._client = Client(self._address, connect_seconds=connect_seconds)

        def alive(self) -> bool:
            return self._client.connected

        def call(self, until: float, name: str, params: Sequence[Any]) -> Any:
            seconds = max(0.001, until - world.loop.time())
            answer = world.scheduler.wait(self._client.forward(seconds, name, list(params)))
            changes = _changes(name, params)
            if world.rng.random() < world.lost_answers * (1.0 if changes else 0.1):
                world.note("fault", f"the answer to {name} is lost")
                raise Unavailable(f"{self._address}: Connection reset by peer")
            if changes and world.rng.random() < world.requests_twice:
                world.loop.create_task(self._arrive_again(name, list(params)))
            return answer

        async def _arrive_again(self, name: str, params: list[Any]) -> None:
            """What was answered arrives once more, by another connection: nothing may come of it."""
            losses, client = world.power_losses, Client(self._address, connect_seconds=1.0)
            seconds = LATE_LOCK_SECONDS if name in LOCK_CALLS else LATE_SECONDS
            await asyncio.sleep(world.rng.random() * seconds)
            if losses == world.power_losses:  # the answer may be undone with what the call did
                world.note("fault", f"{name} {params[0]} arrives once more")
                with contextlib.suppress(QuorumfsError):
                    await client.forward(1.0, name, params)
            await client.close()

        def close(self) -> None:
            world.loop.create_task(self._client.close())

    return SimSocket
