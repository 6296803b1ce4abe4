"""The shorter way between processes of one machine: a Unix socket beside each loopback TCP address.

A server that listens on a loopback address also listens on an abstract Unix socket, named after that
address; a client that is to call a loopback address tries the name first. The kernel forgets the name
with the socket, so nothing is left behind by a kill, and it keeps names apart by network namespace, as it
does ports. It must not wait, and whatever does not work falls back to TCP. Safe in any thread.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct
from contextlib import suppress

from wire.address import TcpAddress

log = logging.getLogger("wire.shortcut")

BUFFER_BYTES = 1024 * 1024
"""What one end may have sent that the other has not read yet: a block crosses with few wake-ups."""

_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): process, user, group


def listen_beside(address: TcpAddress) -> socket.socket | None:
    """Return a bound Unix socket for what also listens on a TCP address; None if there is to be none.

    Args:
        address: the real one, as getsockname(2) tells it.
    """
    name = _name(address)
    if name is None:
        return None
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(name)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        log.warning("%s is served over TCP only: no Unix socket beside it (%s)", address, error.strerror)
        return None
    return listening


def connect_beside(address: TcpAddress) -> socket.socket | None:
    """Return a connected Unix socket to what listens on a TCP address; None if the way is TCP.

    Never waits. The other end must be this process's user or root: anyone may take a name that is free, and
    would get the calls of a server that listens on TCP only.
    """
    name = _name(address)
    if name is None:
        return None
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        connected.connect(name)
        user = _user_of_peer(connected)
    except OSError:  # nobody has the name, or too many wait to be accepted
        connected.close()
        return None
    if user not in (0, os.geteuid()):
        log.warning("%s: its Unix socket belongs to user %d; calling over TCP", address, user)
        connected.close()
        return None
    widen(connected)
    return connected


def widen(connected: socket.socket) -> None:
    """Give a Unix socket room for a block in each direction; no harm where the system allows less."""
    with suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


def _name(address: TcpAddress) -> bytes | None:
    """Return the abstract name beside an address; None unless it is a loopback address in figures."""
    try:
        host = ipaddress.ip_address(address.host)
    except ValueError:
        return None
    if not host.is_loopback or address.port == 0:
        return None
    return b"\0quorumfs/" + str(TcpAddress(str(host), address.port)).encode()


def _user_of_peer(connected: socket.socket) -> int:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
