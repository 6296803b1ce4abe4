"""The simulated network: ordered streams between hosts, which are slow, cut off, or reset in mid-message.

A stream keeps the order of its bytes, as TCP does; what a partition holds back arrives when it heals,
unless a side gave up before. One thread.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from tests.sim.loop import PROCESS, Process, SimLoop

DELAY_SECONDS = 0.0002
SPLIT_PROBABILITY = 0.05


class Listening:
    """Stands for a bound socket."""

    def __init__(self, address: str) -> None:
        self.address = address

    def getsockname(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)


class Network:
    """All streams and listeners. `blocked` holds the directions (from, to) that let nothing through."""

    def __init__(self, loop: SimLoop, rng: random.Random, note: Callable[[str, str], None]) -> None:
        self.loop, self.rng, self.note = loop, rng, note
        self.listeners: dict[str, Listener] = {}
        self.blocked: set[tuple[str, str]] = set()
        self._changed = asyncio.Event()
        self.slow: dict[str, float] = {}
        self.streams: list[Transport] = []

    def delay(self, a: str, b: str) -> float:
        """Draw how long bytes travel from host a to host b."""
        factor = max(self.slow.get(a, 1.0), self.slow.get(b, 1.0))
        return DELAY_SECONDS * factor * (0.5 + self.rng.expovariate(1.0))

    def listen(self, factory: Callable[[], Any], address: str) -> Listener:
        process = PROCESS.get()
        assert process is not None
        listener = Listener(self, address, factory, process)
        self.listeners[address] = listener
        process.at_end.append(listener.close)
        return listener

    async def connect(self, factory: Callable[[], Any], address: str) -> tuple[Any, Any]:
        """Return (transport, protocol). Raises ConnectionRefusedError; hangs while the way is blocked."""
        process = PROCESS.get()
        assert process is not None
        to_host = address.rpartition(":")[0]
        await asyncio.sleep(self.delay(process.host, to_host))
        while {(process.host, to_host), (to_host, process.host)} & self.blocked:
            await self._changed.wait()
        listener = self.listeners.get(address)
        if listener is None or not listener.process.alive:
            raise ConnectionRefusedError(111, "Connection refused")
        near = Transport(self, process, copy_context())
        far = Transport(self, listener.process, listener.context)
        near.peer, far.peer = far, near
        self.streams += [near, far]
        for side in (near, far):
            side.process.at_end.append(side.vanish)
        far.protocol = listener.factory_in_context()
        near.protocol = factory()
        far.call(far.protocol.connection_made, far)
        near.protocol.connection_made(near)
        return near, near.protocol

    def block(self, a: str, b: str) -> None:
        self.blocked.add((a, b))

    def heal(self, kept: frozenset[tuple[str, str]] = frozenset()) -> None:
        """Let everything through again but the directions `kept`; what was held back arrives now."""
        self.blocked &= kept
        self._changed.set()
        self._changed = asyncio.Event()
        if not kept:
            self.slow.clear()
        for stream in list(self.streams):
            stream.flush()

    def reset_some(self, host: str) -> int:
        """Break the streams of a host, each after a part of the bytes that are under way."""
        mine = [s for s in self.streams if s.process.host == host and not s.broken]
        for stream in mine:
            stream.reset()
        return len(mine)


class Listener:
    """What a process listens on."""

    def __init__(self, network: Network, address: str, factory: Callable[[], Any], process: Process) -> None:
        self.network, self.address, self.process = network, address, process
        self._factory = factory
        self.context = copy_context()
        self.sockets: tuple[object, ...] = ()

    def factory_in_context(self) -> Any:
        return self.context.copy().run(self._factory)

    def close(self) -> None:
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]

    async def wait_closed(self) -> None:
        pass


class Transport(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, network: Network, process: Process, context: Context) -> None:
        super().__init__()
        self.network, self.process, self.context = network, process, context
        self.peer: Transport
        self.protocol: Any = None
        self.broken = False
        self._closing = False
        self._reading = True
        self._arrived: list[bytes] = []
        self._held: list[bytes | None] = []
        self._last_arrival = 0.0
        self._generation = 0

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call something in this end's process, now or when that goes on."""
        self.network.loop.call_soon(function, *args, context=self.context.copy())

    # what protocols call

    def write(self, data: Any) -> None:
        if self._closing or self.broken or not self.process.alive:
            return
        chunk = bytes(data)
        if self.network.rng.random() < SPLIT_PROBABILITY and len(chunk) > 1:
            cut = self.network.rng.randrange(1, len(chunk))
            self._send(chunk[:cut])
            chunk = chunk[cut:]
        self._send(chunk)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(bytes(part) for part in list_of_data))

    def close(self) -> None:
        if self._closing or not self.process.alive:
            return
        self._closing = True
        self._send(None)
        self.call(self._lose, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing or self.broken

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._arrived:
            self.call(self._hand_over)

    def is_reading(self) -> bool:
        return self._reading

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    # the way

    def _send(self, chunk: bytes | None) -> None:
        if (self.process.host, self.peer.process.host) in self.network.blocked:
            self._held.append(chunk)
            return
        network, peer = self.network, self.peer
        if peer.broken:  # nobody is there any more: the other host's kernel says so
            delay = network.delay(self.process.host, peer.process.host)
            network.loop.call_later(delay, self._refuse, context=self.context.copy())
            return
        arrival = network.loop.now + network.delay(self.process.host, peer.process.host)
        peer._last_arrival = max(arrival, peer._last_arrival + 1e-9)
        network.loop.call_at_moment(
            peer._last_arrival, peer._arrive, chunk, peer._generation, context=peer.context.copy()
        )

    def _refuse(self) -> None:
        self._lose(ConnectionResetError(104, "Connection reset by peer"))

    def flush(self) -> None:
        held, self._held = self._held, []
        for chunk in held:
            self._send(chunk)

    def _arrive(self, chunk: bytes | None, generation: int) -> None:
        if self.broken or generation != self._generation:
            return
        if chunk is None:
            self._lose(None)
            return
        if self._arrived or not self._reading:
            self._arrived.append(chunk)
            self._hand_over()
        elif not self._closing:
            self._hand(chunk)

    def _hand_over(self) -> None:
        while self._arrived and self._reading and not self.is_closing():
            self._hand(self._arrived.pop(0))

    def _hand(self, chunk: bytes) -> None:
        protocol = self.protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            _fill(protocol, chunk)
        else:
            protocol.data_received(chunk)

    def _lose(self, error: Exception | None) -> None:
        if not self.broken:
            self.broken = True
            self._closing = True
            if self in self.network.streams:
                self.network.streams.remove(self)
            self.protocol.connection_lost(error)

    def reset(self) -> None:
        """Both ends lose the stream; of what is under way only what has arrived by now is handed over."""
        for side in (self, self.peer):
            side._generation += 1
            side.call(side._lose, ConnectionResetError(104, "Connection reset by peer"))

    def vanish(self) -> None:
        """This end's process was killed: the kernel tells the other end, if anything gets through."""
        self.broken = True
        if self in self.network.streams:
            self.network.streams.remove(self)
        if not self._closing:
            self._send(None)


def _fill(protocol: asyncio.BufferedProtocol, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while left := len(rest):
        buffer = memoryview(protocol.get_buffer(left))
        if not (count := min(len(buffer), left)):
            raise RuntimeError("get_buffer() returned an empty buffer")  # as asyncio has it
        buffer[:count] = rest if count == left else rest[:count]
        protocol.buffer_updated(count)
        rest = rest[count:]
