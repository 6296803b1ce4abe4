"""A server on a thread of its own, clients of every kind behind one blocking call, and sample values."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import socket
import threading
import types
import typing
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import uvloop

from wire.blocking import BlockingClient
from wire.client import Client
from wire.config import Encoding
from wire.digest import Buffer
from wire.errors import QuorumfsError
from wire.messages import Identity
from wire.methods import BookkeepingMethods
from wire.server import Server
from wire.table import methods_of

IDENTITY = Identity("dataserver", "contract", 3, 2**62)
EVERY_BYTE = bytes(range(256))
INTEGERS = (0, 1, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63))
STRINGS = ("", "plain", "é ☃ 𝄞", " a\r\nb\tc ", "<&>]]>'\"", "%s {} \\x00")


class LoopThread:
    """An event loop on a thread; `run` carries a coroutine out on it and waits."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], seconds: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    loop = LoopThread()
    try:
        yield loop
    finally:
        loop.close()


class RunningServer:
    """A server that listens, with recording implementations of some tables."""

    def __init__(self, loop: LoopThread, address: str, *tables: type, **options: Any) -> None:
        self.loop = loop
        self.implementations = {table: recorder(table) for table in tables}
        self.server = loop.run(self._make(options))
        for table, implementation in self.implementations.items():
            self.server.register(table, implementation)
        self.address = loop.run(self.server.start(address))

    async def _make(self, options: dict[str, Any]) -> Server:
        return Server(IDENTITY, **options)

    def drain(self, seconds: float = 5.0) -> None:
        self.loop.run(self.server.drain(seconds))

    def connect(self) -> socket.socket:
        """Return a raw connection to the server, for misbehaving on."""
        if self.address.startswith("unix:"):
            raw = socket.socket(socket.AF_UNIX)
            raw.connect(self.address.removeprefix("unix:"))
        else:
            host, _, port = self.address.rpartition(":")
            raw = socket.create_connection((host, int(port)))
        raw.settimeout(10)
        return raw


class Caller(Protocol):
    """A client of any kind."""

    def call(self, deadline_seconds: float, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...

    def close(self) -> None: ...


class AsyncCaller:
    """The asyncio client, called from outside of its loop."""

    def __init__(self, loop: LoopThread, address: str, rpc: Encoding, **options: Any) -> None:
        self.loop = loop
        self.client = Client(address, rpc, **options)

    def call(self, deadline_seconds: float, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.loop.run(self.client.call(deadline_seconds, method, *args, **kwargs))

    def forward(self, name: str, params: list[Any]) -> Any:
        async def passed_on() -> Any:
            return await self.client.forward(10, name, params)

        return self.loop.run(passed_on())

    def close(self) -> None:
        self.loop.run(self.client.close())


class OnceCaller:
    """The blocking client, without its re-sending."""

    def __init__(self, address: str, rpc: Encoding) -> None:
        self.client = BlockingClient([address], rpc)

    def call(self, deadline_seconds: float, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.client.call_once(deadline_seconds, method, *args, **kwargs)

    def close(self) -> None:
        self.client.close()


def make_caller(kind: str, loop: LoopThread, address: str, rpc: Encoding) -> Caller:
    return AsyncCaller(loop, address, rpc) if kind == "async" else OnceCaller(address, rpc)


def recorder(table: type) -> Any:
    """Return an implementation of a table that keeps each call's arguments and answers what it was given.

    `calls` maps a method to the arguments it got last, `answers` to what it returns or raises.
    Every second method is async.
    """
    instance = types.SimpleNamespace(calls={}, answers={})
    for index, name in enumerate(sorted(methods_of(table))):
        setattr(instance, name, _recording(instance, name, getattr(table, name), index % 2 == 1))
    return instance


def _recording(instance: Any, name: str, declared: Callable[..., Any], is_async: bool) -> Callable[..., Any]:
    def carry_out(*args: Any) -> Any:
        instance.calls[name] = args
        answer = instance.answers.get(name)
        if isinstance(answer, QuorumfsError):
            raise answer
        return answer

    async def carry_out_later(*args: Any) -> Any:
        await asyncio.sleep(0)
        return carry_out(*args)

    function: Any = carry_out_later if is_async else carry_out
    signature = inspect.signature(declared)
    function.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return function


def sample(annotation: Any, seed: random.Random) -> Any:
    """Return some value of an annotation, extremes preferred."""
    if annotation == Buffer:
        return sample(bytes, seed)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return None if seed.random() < 0.3 else sample(inner[0], seed)
    if origin is list:
        return [sample(inner[0], seed) for _ in range(seed.randrange(4))]
    if origin is dict:
        return {text: sample(inner[1], seed) for text in seed.sample(STRINGS, 3)}
    if isinstance(annotation, type) and hasattr(annotation, "_fields"):
        hints = typing.get_type_hints(annotation)
        return annotation(*[sample(hints[field], seed) for field in annotation._fields])
    if annotation is Any:
        annotation = seed.choice([int, bool, float, str, bytes, type(None), list[int], dict[str, bytes]])
        return sample(annotation, seed)
    simple: dict[Any, Callable[[], Any]] = {
        int: lambda: seed.choice(INTEGERS),
        bool: lambda: seed.random() < 0.5,
        float: lambda: seed.choice((0.0, -1.5, 1e300, 5e-324, 0.1)),
        str: lambda: seed.choice(STRINGS),
        bytes: lambda: seed.choice((b"", EVERY_BYTE, b"\xff\xfe name", seed.randbytes(16))),
        type(None): lambda: None,
    }
    return simple[annotation]()


class Slow:
    """Answers after as many milliseconds as it is asked for, or never (-1)."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.now = self.most_at_once = 0

    async def renew(self, session: int) -> int:
        self.begun.append(session)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await (asyncio.sleep(session / 1000) if session >= 0 else asyncio.Event().wait())
        finally:
            self.now -= 1
        return session


def slow_server(loop: LoopThread, address: str = "127.0.0.1:0", **options: Any) -> tuple[Slow, Server, str]:
    async def make() -> tuple[Slow, Server, str]:
        slow, server = Slow(), Server(IDENTITY, **options)
        server.register(BookkeepingMethods, slow, only=["renew"])
        return slow, server, await server.start(address)

    made: tuple[Slow, Server, str] = loop.run(make())
    return made


class LogLines(logging.Handler):
    """Keeps what the wire logs while a test runs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def tracebacks(self) -> list[str]:
        return [record.getMessage() for record in self.records if record.exc_info]

    def count(self, part: str) -> int:
        return sum(part in record.getMessage() for record in self.records)
