"""The addresses that servers on this machine listen at: which are free, and for whom one is not.

It must not know what listens. Safe in any thread.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from pathlib import Path
from typing import Any

from wire.address import UnixAddress, parse_address
from wire.config import ConfigError
from wire.names import addresses_of

ADDRESS_SECONDS = 1.0
"""The kernel gives the address of a process that was killed free some milliseconds after its end.

A name is looked up for as long.
"""
ADDRESS_LOOK_SECONDS = 0.005
PORTS = range(20000, 32000)
"""Below the ephemeral range, so that an outgoing connection does not take a port of a server that is down."""


def check_address(name: str, address: str, config_file: Path) -> None:
    """Return when a server can listen at its address.

    Args:
        name: the server's.
        address: where it is to listen.
        config_file: where people change that.

    Raises:
        ConfigError: another program listens there, or it is no address of this machine.
    """
    end = time.monotonic() + ADDRESS_SECONDS
    while not address.startswith("unix:") and (error := _refusal_to_listen(address)) is not None:
        if error.errno != errno.EADDRINUSE:
            raise ConfigError(
                f"{name} cannot be started here, as nothing can listen on {address} ({error.strerror}): "
                f"start it on its own machine, or change the address in {config_file}"
            )
        if time.monotonic() > end:
            raise ConfigError(
                f"{address} of {name} is in use by another program; stop that, "
                f"or change the address in {config_file}"
            )
        time.sleep(ADDRESS_LOOK_SECONDS)


def is_elsewhere(address: str) -> bool:
    """Tell whether an address is none of this machine, or a name that it does not know soon.

    The port is left alone: a server that is started meanwhile would be told that it is in use.
    """
    place = parse_address(address)
    if isinstance(place, UnixAddress):
        return False
    try:
        known = addresses_of(place.host, 0, time.monotonic() + ADDRESS_SECONDS)
    except OSError:
        return True
    return not any(_is_own(family, name) for family, _, _, _, name in known)


def _is_own(family: int, name: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(name)  # to any free port
        except OSError:
            return False
    return True


def free_addresses(count: int) -> list[str]:
    """Return addresses on loopback that nothing listens on now, chosen at random against collisions."""
    found: list[str] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        if _refusal_to_listen(f"127.0.0.1:{port}") is None:
            found.append(f"127.0.0.1:{port}")
    return found


def _refusal_to_listen(address: str) -> OSError | None:
    """Return why a server could not listen there now (as asyncio listens: with SO_REUSEADDR), if so."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
            probe.listen(1)
        except OSError as error:
            return error
    return None
