"""A relay between a cluster's mediator and one data server that can fail in the ways of a network.

A relay's port has no Unix socket beside it, so that all calls pass here. Threads of its own.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Literal, Self

from tests.cluster.passing import accept_pairs
from tools.cluster import LocalCluster
from wire.config import ClusterConfig, Deadlines, dumps

Fault = Literal["", "slow", "very slow", "deaf", "mute", "half-open", "refused", "reset", "garbage"]
"""deaf: what the mediator sends is lost; mute: what it should get is lost; half-open: old connections carry
nothing any more, without being closed, and new ones work; reset: in the midst of an answer; garbage: no
MessagePack comes."""

CHUNK = 1 << 16
DELAYS_SECONDS = {"slow": 0.05, "very slow": 2.0}
RESET_AFTER_BYTES = 5
GARBAGE = b"\xc1" * 16
RESET = struct.pack("ii", 1, 0)


class Relay:
    """Passes connections on to a server, under the fault of the moment."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._fault: Fault = ""
        self.answered_bytes = 0
        """How much the server has answered through here."""
        self._connections: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self._stop_listening()
        self._cut()

    def begin(self, fault: Fault) -> None:
        """Fail in this way from now on; "" passes all on again, over connections that were not frozen."""
        before, self._fault = self._fault, fault
        if fault == "half-open":
            self._frozen |= self._connections
        elif fault == "refused":
            self._stop_listening()
            self._cut()
        elif before == "refused":
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listen()

    def _listen(self) -> None:
        pairs = (self._listener, self._upstream, self._join)
        threading.Thread(target=accept_pairs, args=pairs, daemon=True).start()

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(2), which holds the port
        self._listener.close()

    def _cut(self) -> None:
        for connected in list(self._connections):
            _shut(connected)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        self._connections |= {client, server}
        for source, sink, answers in ((client, server, False), (server, client, True)):
            threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while chunk := source.recv(CHUNK):
                self._pass(chunk, source, sink, answers)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(sink)
            self._connections.discard(source)

    def _pass(self, chunk: bytes, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        fault = self._fault
        if source in self._frozen or fault == ("mute" if answers else "deaf"):
            return
        if fault in DELAYS_SECONDS:
            time.sleep(DELAYS_SECONDS[fault])
        elif answers and fault == "reset":
            sink.sendall(chunk[:RESET_AFTER_BYTES])
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            raise ConnectionResetError
        elif answers and fault == "garbage":
            chunk = GARBAGE
        sink.sendall(chunk)
        if answers:
            self.answered_bytes += len(chunk)


def _shut(connected: socket.socket) -> None:
    """Close, and wake the thread that reads; what is to be reset must not be shut down in order first."""
    resets = connected.fileno() >= 0 and connected.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER)
    if not resets:
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
    connected.close()


class RelayedCluster(LocalCluster):
    """A local cluster whose mediator reaches data server 1 through a relay, with deadlines of its own."""

    def __init__(self, made: LocalCluster, relay: Relay, deadlines: Deadlines) -> None:
        super().__init__(made.directory, made.config)
        first, *others = made.config.data_servers
        relayed: ClusterConfig = dataclasses.replace(
            made.config,
            data_servers=(dataclasses.replace(first, listen=relay.address), *others),
            deadlines=deadlines,
        )
        self._mediator_config = made.directory / "mediator.toml"
        self._mediator_config.write_text(dumps(relayed, made.directory))

    def _command(self, name: str) -> list[str]:
        command = super()._command(name)
        if name == "mediator":
            command[command.index("--config") + 1] = str(self._mediator_config)
        return command
