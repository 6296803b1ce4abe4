"""Where a server listens: "HOST:PORT", "[IPV6]:PORT" or "unix:PATH". Pure; safe in any thread.

It must not open anything; it only reads and writes addresses.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from wire.config import check_address


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (a name or a number, without brackets) and a port; port 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix stream socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Return the parts of an address. Raises ConfigError with one line that says what is wrong."""
    check_address(text)
    if text.startswith("unix:"):
        return UnixAddress(text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))


def is_of_one_machine(text: str) -> bool:
    """Tell whether an address is one that only the same machine reaches: a Unix socket, or loopback."""
    address = parse_address(text)
    if isinstance(address, UnixAddress) or address.host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(address.host).is_loopback
    return False


def from_socket_name(name: Any) -> TcpAddress:
    """Return the address that getsockname(2) told of a bound TCP socket."""
    return TcpAddress(name[0], name[1])
