"""One data server, and the metadata server, as the mediator sees them: an address, a client, a state.

Every call to a server goes through here, so that what an answer tells about the server's health is
noted in one place. It must not decide about quorums. For use on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from mediator.latency import no_times
from wire.errors import Draining, QuorumfsError, TransportError, Unavailable
from wire.messages import BlockRecord
from wire.methods import BookkeepingMethods
from wire.request import Request, Then, raw_request, request_of, settle

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

State = Literal["up", "down", "refilling"]


class Caller(Protocol):
    """The part of wire.client.Client that the mediator uses; one attempt a call."""

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        """Send a request; `then` is called once, with the result or the QuorumfsError that came."""

    def open_connection(self) -> int:
        """Return the number of the connection that stands at this moment; 0: none does, or nobody knows."""

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
        self.full = False
        """Whether it has no room for a new block (mediator.room); it votes and serves all the same."""
        self.since_ns = time.time_ns()
        self.error = "not reached yet"
        self.epoch = 0
        self.reads = no_times()
        """How long it took of late to send bytes."""
        self.votes = no_times()
        """How long it took of late to vote."""
        self.open_calls = 0
        """So many calls were sent to it and are not answered."""
        self.answered = 0.0
        """When it last answered anything, on the monotonic clock."""
        self.look = asyncio.Event()
        """Set to have health look at this server at once."""

    def __str__(self) -> str:
        """Return what people call it."""
        return f"{f'data server {self.number}' if self.number else 'the metadata server'} ({self.address})"

    @property
    def state(self) -> State:
        """A server that is being refilled is up: it takes writes and votes."""
        if not self.up:
            return "down"
        return "refilling" if self.refilling else "up"

    def begin(self, deadline_seconds: float, request: Request[Any], then: Then) -> None:
        """Send a request once; note what the answer (or error) tells of the server, and hand it to `then`."""

        def answered(answer: Any) -> None:
            self.open_calls -= 1
            if isinstance(answer, TransportError):
                self.note_failure(answer)
            elif not isinstance(answer, QuorumfsError):
                self.answered = time.monotonic()
            then(answer)

        self.open_calls += 1
        self.client.begin(deadline_seconds, request, answered)

    def send(self, deadline_seconds: float, request: Request[R]) -> asyncio.Future[R]:
        """Send a request once. The future raises QuorumfsError."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.begin(deadline_seconds, request, partial(settle, future))
        return future

    async def call(
        self,
        deadline_seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **keywords: P.kwargs,
    ) -> R:
        """Call once and note what that tells of the server. Raises QuorumfsError."""
        return await self.send(deadline_seconds, request_of(method, *args, **keywords))

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
            self.reads, self.votes = no_times(), no_times()  # how slow it was before says nothing of now
            log.info("%s is up", self)

    def mark_down(self, error: str) -> None:
        """Do not use it until health finds it up; `error` says why, for people."""
        self.error = error.removeprefix(f"{self.address}: ")
        if self.up:
            self.up, self.since_ns = False, time.time_ns()
            log.warning("%s is down: %s", self, self.error)


class Metadata:
    """The questions that the mediator itself asks the metadata server."""

    def __init__(self, server: Server, deadline_seconds: float, witness_seconds: float) -> None:
        self.server = server
        self.deadline_seconds = deadline_seconds
        self.witness_seconds = witness_seconds

    async def ask(self, method: Callable[Concatenate[Any, P], R], *args: P.args, **keywords: P.kwargs) -> R:
        """Call the metadata server once. Raises QuorumfsError."""
        return await self.server.call(self.deadline_seconds, method, *args, **keywords)

    def forward(self, name: str, params: list[Any]) -> asyncio.Future[Any]:
        """Pass a client's call on as it came; the future has the raw result. Raises QuorumfsError."""
        return self.server.send(self.deadline_seconds, raw_request(name, params))

    async def live(self, blocks: list[bytes]) -> list[BlockRecord | None]:
        """Return the committed record of each block; None where there is none or it is garbage by now."""
        records, garbage = await asyncio.gather(
            self.server.call(self.witness_seconds, BookkeepingMethods.witnesses, blocks),
            self.server.call(self.witness_seconds, BookkeepingMethods.collectable, blocks),
        )
        dead = set(garbage)
        return [None if block in dead else record for block, record in zip(blocks, records, strict=True)]
