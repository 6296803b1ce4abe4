"""Peers that send one server as much as they can, for some time: `python -m tests.cluster.flood`.

Run as a process of its own, so that it does not keep a test from measuring. Prints how many were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack

from wire.digest import BLOCK_BYTES, block_digest
from wire.xml_codec import pack_request

MEDIUM_BYTES = 48_000
Make = Callable[[], bytes]


def msgpack_call(name: str, params: list[Any]) -> bytes:
    return bytes(msgpack.packb([0, 1, name, params]))


def xml_call(name: str, params: list[Any]) -> bytes:
    body = pack_request(name, params)
    head = f"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class Flood:
    """All peers of one run."""

    def __init__(self, address: str, put: str, until: float) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self.put = put
        self.until = until
        self.answered = 0
        self._long, self._medium = os.urandom(BLOCK_BYTES), os.urandom(MEDIUM_BYTES)
        self._digests = {id(data): block_digest(data) for data in (self._long, self._medium)}

    def params(self, data: bytes) -> list[Any]:
        return [os.urandom(16), self._digests[id(data)], data, False]

    def long(self) -> list[Any]:
        return self.params(self._long)

    def many(self, count: int) -> list[Any]:
        return [[{"methodName": self.put, "params": self.long()} for _ in range(count)]]

    async def in_turn(self, make: Make, is_answer: Callable[[bytes], bool]) -> None:
        """Call again and again, on one connection as long as it is there."""
        while time.monotonic() < self.until:
            with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    while time.monotonic() < self.until:
                        writer.write(make())
                        await writer.drain()
                        got = b""
                        while not is_answer(got):
                            if not (more := await reader.read(BLOCK_BYTES)):
                                raise EOFError
                            got += more
                        self.answered += 1
                finally:
                    writer.close()

    async def all_at_once(self, make: Make, count: int) -> None:
        """Send many calls without waiting for an answer; then only take the answers."""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            taking = asyncio.create_task(self._take(reader))
            for _ in range(count):
                if time.monotonic() >= self.until:
                    break
                writer.write(make())
                await writer.drain()
            await taking
            writer.close()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(max(self.until - time.monotonic(), 0)):
                while await reader.read(BLOCK_BYTES):
                    self.answered += 1

    def peer(self, kind: str, number: int) -> Coroutine[Any, Any, None]:
        """Return what one peer does."""
        if kind == "mixed":
            kind = ("xml-puts", "puts", "multicalls", "xml-multicalls", "medium")[number % 5]
        if kind == "xml-puts":
            return self.in_turn(lambda: xml_call(self.put, self.long()), is_xml)
        if kind == "puts":
            return self.in_turn(lambda: msgpack_call(self.put, self.long()), is_msgpack)
        if kind == "multicalls":
            return self.in_turn(lambda: msgpack_call("system.multicall", self.many(12)), is_msgpack)
        if kind == "xml-multicalls":
            return self.in_turn(lambda: xml_call("system.multicall", self.many(10)), is_xml)
        if kind == "medium":
            return self.all_at_once(lambda: msgpack_call(self.put, self.params(self._medium)), 256)
        return self.all_at_once(lambda: msgpack_call("sync_metadata", []), 256)


def is_msgpack(got: bytes) -> bool:
    return len(got) >= 4


def is_xml(got: bytes) -> bool:
    return got.endswith(b"</methodResponse>\n")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("address")
    parser.add_argument("--put", default="put", help="the method that takes blocks there")
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    flood = Flood(arguments.address, arguments.put, time.monotonic() + arguments.seconds)
    peers = [asyncio.create_task(flood.peer(arguments.kind, number)) for number in range(arguments.peers)]
    await asyncio.wait(peers, timeout=arguments.seconds + 1)
    print(flood.answered, flush=True)
    os._exit(0)  # what is still on its way is of no interest


if __name__ == "__main__":
    asyncio.run(main())
