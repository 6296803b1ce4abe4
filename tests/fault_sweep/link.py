"""A proxy before a real process, which can lose, double and delay single messages.

It reads the MessagePack-RPC messages that it passes on, over TCP or Unix sockets at either end. A rule says
what becomes of the next call of a method, or of all calls. Threads of its own.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import msgpack

MessageFault = Literal["request lost", "answer lost", "doubled", "late", "too late"]
"""doubled: the request comes twice, and so does its answer; late: the request is held back for `seconds`."""

CHUNK = 1 << 16
REQUEST, ANSWER = 0, 1
ALL = ""


class Rule(NamedTuple):
    """What is done to the next call of `method` (ALL: to every call)."""

    fault: MessageFault
    method: str
    seconds: float = 0.0


class Link:
    """Passes connections on to a server. `seen` counts calls by method, `hit` those that met the fault."""

    def __init__(self, upstream: str, listen: str = "127.0.0.1:0") -> None:
        """Begin to listen; addresses are as in the configuration."""
        self._upstream = upstream
        self._listener = _listen(listen)
        name = self._listener.getsockname()
        self.address = f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
        self.seen: Counter[str] = Counter()
        self.hit = 0
        self._rule: Rule | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        _shut(self._listener)
        for connected in list(self._sockets):
            _shut(connected)

    def begin(self, rule: Rule | None) -> None:
        """Apply a rule from now on (None: no fault), and count anew."""
        with self._lock:
            self._rule, self.hit = rule, 0
            self.seen.clear()

    def take(self, method: str) -> Rule | None:
        """Count a call; return the rule that it meets."""
        with self._lock:
            self.seen[method] += 1
            rule = self._rule
            if rule is None or rule.method not in (ALL, method):
                return None
            self.hit += 1
            if rule.method:
                self._rule = None
            return rule

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = _connect(self._upstream)
            except OSError:
                client.close()
                continue
            pair = _Pair(self, client, server)
            self._sockets |= {client, server}
            for work in (pair.pass_requests, pair.pass_answers):
                threading.Thread(target=self._run, args=(work, client, server), daemon=True).start()

    def _run(self, work: Any, client: socket.socket, server: socket.socket) -> None:
        try:
            work()
        except OSError:
            pass
        finally:
            for connected in (client, server):
                _shut(connected)
                self._sockets.discard(connected)


class _Pair:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, link: Link, client: socket.socket, server: socket.socket) -> None:
        self._link, self._client, self._server = link, client, server
        self._lost: set[int] = set()
        self._sending = threading.Lock()

    def pass_requests(self) -> None:
        """Pass requests on until the end of the connection."""
        for message, raw in _messages(self._client):
            rule = self._link.take(message[2]) if message[0] == REQUEST else None
            fault = rule.fault if rule else None
            if fault == "answer lost":
                self._lost.add(message[1])
            if rule and fault in ("late", "too late"):
                later = threading.Timer(rule.seconds, self._send_late, (raw,))
                later.daemon = True
                later.start()
            elif fault != "request lost":
                self._send(raw * 2 if fault == "doubled" else raw)

    def pass_answers(self) -> None:
        """Pass answers on until the end of the connection."""
        for message, raw in _messages(self._server):
            if message[1] in self._lost:
                self._lost.discard(message[1])
            else:
                self._client.sendall(raw)

    def _send_late(self, raw: bytes) -> None:
        with suppress(OSError):
            self._send(raw)

    def _send(self, raw: bytes) -> None:
        with self._sending:
            self._server.sendall(raw)


def _messages(source: socket.socket) -> Any:
    """Yield each message with its bytes until the connection ends. Raises OSError."""
    unpacker = msgpack.Unpacker(strict_map_key=False, unicode_errors="surrogateescape")
    waiting, begins = bytearray(), 0
    while chunk := source.recv(CHUNK):
        unpacker.feed(chunk)
        waiting += chunk
        for message in unpacker:
            ends = unpacker.tell()
            raw, waiting = bytes(waiting[: ends - begins]), waiting[ends - begins :]
            begins = ends
            yield message, raw


def _listen(address: str) -> socket.socket:
    if address.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX)
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
        listener.bind(address.removeprefix("unix:"))
        listener.listen()
        return listener
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)))


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(address.removeprefix("unix:"))
        return connected
    host, _, port = address.rpartition(":")
    connected = socket.create_connection((host, int(port)))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
    connected.close()
