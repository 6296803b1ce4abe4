"""Where the servers are that have names: looked up within a deadline, which getaddrinfo(3) does not know.

A name server that does not answer costs one thread for each name that is looked up: calls that come meanwhile
wait for the same answer. It remembers nothing, and must not connect. Safe in any thread.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import Future
from typing import Any

_guard = threading.Lock()
_under_way: dict[tuple[str, int], Future[list[Any]]] = {}


def addresses_of(host: str, port: int, until: float) -> list[Any]:
    """Return the addresses of a host, as getaddrinfo(3) does for stream sockets; at least one.

    Args:
        host: its name, or a number, which is looked up nowhere.
        port: the port.
        until: the deadline, on time.monotonic().

    Raises:
        OSError: nobody knows it; TimeoutError: nor was that said in time.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        asked = _ask(host, port)
    try:
        return asked.result(max(0.0, until - time.monotonic()))
    except TimeoutError:
        raise TimeoutError("its name was not found in time") from None


async def look_up(host: str, port: int) -> list[Any]:
    """Return the addresses of a name, likewise; whoever waits on an event loop sets the deadline.

    Not by the loop's own getaddrinfo: its threads are few, so that names about which nobody answers hold
    up all others, and the process does not end before they have an answer or have given up.
    """
    return await asyncio.wrap_future(_ask(host, port))


def _ask(host: str, port: int) -> Future[list[Any]]:
    """Return the question that is under way, or a new one. Raises OSError: no thread can be begun."""
    with _guard:
        asked = _under_way.get((host, port))
        if asked is None:
            asked = Future()
            asked.set_running_or_notify_cancel()  # who waits no longer does not end it for the others
            try:
                threading.Thread(
                    target=_answer, args=(host, port, asked), name="name look-up", daemon=True
                ).start()
            except RuntimeError as error:
                raise OSError(str(error)) from None
            _under_way[host, port] = asked
    return asked


def _answer(host: str, port: int, asked: Future[list[Any]]) -> None:
    """Ask the name server; whoever comes from then on asks anew."""
    found: list[Any] | OSError
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        found = error
    except Exception as error:  # of a name that cannot be encoded
        found = OSError(str(error))
    with _guard:
        del _under_way[host, port]
    if isinstance(found, OSError):
        asked.set_exception(found)
    else:
        asked.set_result(found)
