"""Where the servers are that have names: looked up within a deadline, which getaddrinfo(3) does not know.

A name server that does not answer costs one thread for each name that is looked up: calls that come meanwhile
wait for the same answer. It remembers nothing, and must not connect. Safe in any thread.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

_guard = threading.Lock()
_under_way: dict[tuple[str, int], _LookUp] = {}


class _LookUp:
    """One question to the name server."""

    def __init__(self, host: str, port: int) -> None:
        self._asked = host, port
        self._done = threading.Event()
        self._found: list[Any] = []
        self._error: OSError | None = None

    def run(self) -> None:
        try:
            self._found = socket.getaddrinfo(*self._asked, type=socket.SOCK_STREAM)
        except OSError as error:
            self._error = error
        except Exception as error:  # of a name that cannot be encoded
            self._error = OSError(str(error))
        finally:
            with _guard:
                del _under_way[self._asked]
            self._done.set()

    def result(self, until: float) -> list[Any]:
        if not self._done.wait(max(0.0, until - time.monotonic())):
            raise TimeoutError("its name was not found in time")
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror or str(self._error))
        return self._found


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
        return _look_up(host, port).result(until)


def _look_up(host: str, port: int) -> _LookUp:
    """Return the question that is under way, or a new one. Raises OSError: no thread can be begun."""
    with _guard:
        look_up = _under_way.get((host, port))
        if look_up is None:
            look_up = _LookUp(host, port)
            try:
                threading.Thread(target=look_up.run, name="name look-up", daemon=True).start()
            except RuntimeError as error:
                raise OSError(str(error)) from None
            _under_way[host, port] = look_up
    return look_up
