"""One call, ready to be sent to any number of servers: its parameters are checked and packed once.

Knows no connection. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from wire.errors import InternalError, QuorumfsError
from wire.msgpack_codec import Buffer
from wire.table import Converter, method_of

log = logging.getLogger("wire.client")

P = ParamSpec("P")
R = TypeVar("R")

Then = Callable[[Any], None]
"""Takes what came of a call: its result, or the QuorumfsError that came instead. It must not raise."""


class Request(Generic[R]):
    """A method's name and raw parameters; `result` makes of a raw result what the caller gets.

    Attributes:
        room_bytes: how many bytes the answer is to have. If there are any, a server that has mapped this
            process's memory gets a place for them as one more parameter.
        body: the name and the parameters as a MessagePack-RPC message has them, once they were packed.
        lent_body: the same for a server that has mapped the lender's memory.
    """

    __slots__ = ("body", "lent_body", "name", "params", "result", "room_bytes")

    def __init__(self, name: str, params: Sequence[Any], result: Converter) -> None:
        self.name = name
        self.params = params
        self.result = result
        self.room_bytes = 0
        self.body: list[Buffer] | None = None
        self.lent_body: list[Buffer] | None = None


def request_of(method: Callable[Concatenate[Any, P], R], *args: P.args, **keywords: P.kwargs) -> Request[R]:
    """Return the request of a table's method. Raises BadRequest when the arguments do not fit."""
    spec = method_of(method)
    return Request(spec.name, spec.positional(args, keywords), spec.answer)


def raw_request(name: str, params: Sequence[Any]) -> Request[Any]:
    """Return a request by name, with raw parameters, whose result stays as it comes."""
    return Request(name, params, as_it_is)


def as_it_is(value: Any) -> Any:
    """Return a raw result."""
    return value


def settle(future: asyncio.Future[Any], answer: Any) -> None:
    """End a future with what came of a call, unless nobody waits any more."""
    if future.done():
        return
    if isinstance(answer, QuorumfsError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def failure_of(error: Exception, name: str) -> QuorumfsError:
    """Return what a call ends with that could not be made; an error that is none of ours is a defect."""
    if isinstance(error, QuorumfsError):
        return error
    log.error("%s could not be sent", name, exc_info=error)
    return InternalError(f"{name} could not be sent ({type(error).__name__}: {error})")
