"""One data server, and the metadata server, as the mediator sees them: an address, a client, a state.

Every call to a server goes through here, so that what an answer tells about the server's health is
noted in one place. It must not decide about quorums. For use on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from wire.errors import Draining, TransportError, Unavailable
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods

P = ParamSpec("P")
R = TypeVar("R")

State = Literal["up", "down", "refilling"]

LATENCY_WEIGHT = 0.2
"""How much the newest latency counts in the running mean."""


class Caller(Protocol):
    """The part of wire.client.Client that the mediator uses; one attempt a call."""

    async def call(
        self,
        deadline_seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **keywords: P.kwargs,
    ) -> R:
        """Call a method of a table; raise QuorumfsError."""

    async def forward(self, deadline_seconds: float, name: str, params: Sequence[Any]) -> Any:
        """Call by name with raw parameters; return the raw result; raise QuorumfsError."""

    async def close(self) -> None:
        """Close the connections."""


MakeClient = Callable[[str, Callable[[], None]], Caller]
"""Makes a client of an address; it calls the second argument when its connection breaks."""


class Server:
    """A server's address, client and state. `number` is 0 for the metadata server."""

    def __init__(self, number: int, address: str, make_client: MakeClient) -> None:
        self.number = number
        self.address = address
        self.client = make_client(address, self.note_disconnect)
        self.up = False
        self.refilling = False
        self.since_ns = time.time_ns()
        self.error = "not reached yet"
        self.epoch = 0
        self.latency_seconds = 0.0
        self.answered = 0.0
        """When it last answered anything, on the monotonic clock."""
        self.look = asyncio.Event()
        """Set to have health look at this server at once."""

    @property
    def state(self) -> State:
        """A server that is being refilled is up: it takes writes and votes."""
        if not self.up:
            return "down"
        return "refilling" if self.refilling else "up"

    async def call(
        self,
        deadline_seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **keywords: P.kwargs,
    ) -> R:
        """Call once and note what that tells of the server. Raises QuorumfsError."""
        begun = time.monotonic()
        try:
            answer = await self.client.call(deadline_seconds, method, *args, **keywords)
        except TransportError as error:
            self.note_failure(error)
            raise
        self.answered = time.monotonic()
        self.latency_seconds += LATENCY_WEIGHT * (self.answered - begun - self.latency_seconds)
        return answer

    def note_failure(self, error: TransportError) -> None:
        """A refused or broken connection means down at once; a late answer only makes health look."""
        if isinstance(error, Unavailable | Draining):
            self.mark_down(error.message)
        self.look.set()

    def note_disconnect(self) -> None:
        """The connection broke, whether or not a call was in flight."""
        self.note_failure(Unavailable("the connection broke"))

    def mark_up(self) -> None:
        """Use it from now on."""
        if not self.up:
            self.up, self.error, self.since_ns = True, "", time.time_ns()

    def mark_down(self, error: str) -> None:
        """Do not use it until health finds it up; `error` says why, for people."""
        if self.up:
            self.up, self.since_ns = False, time.time_ns()
        self.error = error.removeprefix(f"{self.address}: ")


class Metadata:
    """The questions that the mediator itself asks the metadata server."""

    def __init__(self, server: Server, deadline_seconds: float, witness_seconds: float) -> None:
        self.server = server
        self.deadline_seconds = deadline_seconds
        self.witness_seconds = witness_seconds

    async def ask(self, method: Callable[Concatenate[Any, P], R], *args: P.args, **keywords: P.kwargs) -> R:
        """Call the metadata server once. Raises QuorumfsError."""
        return await self.server.call(self.deadline_seconds, method, *args, **keywords)

    async def forward(self, name: str, params: list[Any]) -> Any:
        """Pass a client's call on as it came. Raises QuorumfsError."""
        try:
            return await self.server.client.forward(self.deadline_seconds, name, params)
        except TransportError as error:
            self.server.note_failure(error)
            raise

    async def live(self, blocks: list[bytes]) -> list[BlockRecord | None]:
        """Return the committed record of each block; None where there is none or it is garbage by now."""
        records, garbage = await asyncio.gather(
            self.server.call(self.witness_seconds, BookkeepingMethods.witnesses, blocks),
            self.server.call(self.witness_seconds, BookkeepingMethods.collectable, blocks),
        )
        dead = set(garbage)
        return [None if block in dead else record for block, record in zip(blocks, records, strict=True)]
