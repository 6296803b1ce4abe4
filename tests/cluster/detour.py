"""A cluster whose calls pass through proxies that can swallow them: faults between call and answer.

    client --> front --> mediator --> back --> metaserver

A proxy reads the MessagePack-RPC messages that it passes on. A trap makes it swallow, for chosen sessions,
one mutating call each: before it is passed on, right after, or only its answer. Threads of its own.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal, Self

import msgpack

from tests.cluster.passing import accept_pairs
from tools.cluster import LocalCluster
from tools.health import await_writable
from wire.config import ClusterConfig, dumps

Moment = Literal["before", "sent", "after"]
"""The call is not passed on; it is, and its answer may come or not; it was carried out and answered."""

CHUNK = 1 << 16
REQUEST, ANSWER = 0, 1

VICTIMS: dict[str, tuple[str, ...]] = {
    "only the connection": (),
    "mediator": ("mediator",),
    "metaserver": ("metaserver",),
    "both": ("mediator", "metaserver"),
}


class Trap:
    """Catches one call of each session; `caught` holds the raw answers that it swallowed, None for errors."""

    def __init__(self, moment: Moment, sessions: Collection[int]) -> None:
        self.moment = moment
        self.caught: dict[int, Any] = {}
        self.full = threading.Event()
        self._wanted = set(sessions)
        self._count = len(self._wanted)
        self._lock = threading.Lock()

    def wants(self, message: list[Any]) -> int | None:
        """Return the session whose call a request is, if it is to be caught; once each."""
        first = message[3][0] if message[3] else None
        if not isinstance(first, list) or len(first) != 3:
            return None
        with self._lock:
            if first[0] not in self._wanted:
                return None
            self._wanted.remove(first[0])
        return int(first[0])

    def catch(self, session: int, answer: Any) -> None:
        """Note that a call was caught."""
        with self._lock:
            self.caught[session] = answer
            if len(self.caught) == self._count:
                self.full.set()


class Proxy:
    """Passes connections on to a server."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.trap: Trap | None = None
        self._sockets: set[socket.socket] = set()
        pairs = (self._listener, self._upstream, self._join)
        threading.Thread(target=accept_pairs, args=pairs, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break all connections, and catch nothing any more."""
        self.trap = None
        for connected in list(self._sockets):
            _shut(connected)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        self._sockets |= {client, server}
        swallowed: dict[int, int] = {}
        for source, sink, look in (
            (client, server, self._looks_at_requests(swallowed)),
            (server, client, self._looks_at_answers(swallowed)),
        ):
            threading.Thread(target=self._pump, args=(source, sink, look), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, passes: Callable[[list[Any]], bool]) -> None:
        unpacker = msgpack.Unpacker(strict_map_key=False, unicode_errors="surrogateescape")
        waiting, begins = bytearray(), 0
        try:
            while chunk := source.recv(CHUNK):
                unpacker.feed(chunk)
                waiting += chunk
                for message in unpacker:
                    ends = unpacker.tell()
                    raw, waiting = waiting[: ends - begins], waiting[ends - begins :]
                    begins = ends
                    if passes(message):
                        sink.sendall(raw)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(sink)
            self._sockets.discard(source)

    def _looks_at_requests(self, swallowed: dict[int, int]) -> Callable[[list[Any]], bool]:
        def passes(message: list[Any]) -> bool:
            trap = self.trap
            session = trap.wants(message) if trap is not None and message[0] == REQUEST else None
            if trap is None or session is None:
                return True
            swallowed[message[1]] = session
            if trap.moment != "after":
                trap.catch(session, None)
            return trap.moment != "before"

        return passes

    def _looks_at_answers(self, swallowed: dict[int, int]) -> Callable[[list[Any]], bool]:
        def passes(message: list[Any]) -> bool:
            trap, session = self.trap, swallowed.get(message[1])
            if message[0] != ANSWER or session is None:
                return True
            if trap is not None and trap.moment == "after":
                trap.catch(session, message[3])
            return False

        return passes


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
    connected.close()


class DetouredCluster(LocalCluster):
    """A local cluster whose mediator reaches the metadata server through a proxy."""

    def __init__(self, directory: Path, config: ClusterConfig, back: str) -> None:
        super().__init__(directory, config)
        self._mediator_config = directory / "mediator.toml"
        detoured = dataclasses.replace(config, metaserver_listen=back)
        self._mediator_config.write_text(dumps(detoured, directory))

    def _command(self, name: str) -> list[str]:
        command = super()._command(name)
        if name == "mediator":
            command[command.index("--config") + 1] = str(self._mediator_config)
        return command


class Detour:
    """A running cluster with a proxy before and behind its mediator."""

    def __init__(self, made: LocalCluster, stack: ExitStack) -> None:
        self.back = stack.enter_context(Proxy(made.address("metaserver")))
        self.cluster = DetouredCluster(made.directory, made.config, self.back.address)
        self.cluster.start()
        await_writable(self.cluster)
        self.front = stack.enter_context(Proxy(self.cluster.address("mediator")))

    def kill(self, victims: Collection[str], proxy: Proxy) -> None:
        """Kill servers, break what a proxy passes on, and start the servers again."""
        for victim in victims:
            self.cluster.kill(victim)
        proxy.cut()
        self.cluster.start()
