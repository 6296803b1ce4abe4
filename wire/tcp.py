"""What TCP connections are set to: what is sent goes at once, and another machine that is gone is noticed.

A machine that lost its power, or a firewall that forgot the connection, says nothing. What was sent is then
never confirmed, and a connection without traffic stands for ever. A process that is merely slow or stopped is
not mistaken for that: its machine answers for it. Safe in any thread.
"""

from __future__ import annotations

import socket

UNCONFIRMED_SECONDS = 8
"""A caller gives up a connection when the other machine confirms nothing of what was sent for so long."""
QUIET_SECONDS = 5
"""A caller asks the other machine for a sign of life after so long without one, and then each second."""
PEER_QUIET_SECONDS = 60
"""A server asks so: who is gone costs it only a connection."""
PEER_PROBE_SECONDS = 10
PEER_PROBES = 3


def set_up_caller(connected: socket.socket) -> None:
    """Set up a caller's TCP connection; see wire.tcp."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _keep_alive(connected, QUIET_SECONDS, 1, UNCONFIRMED_SECONDS)  # the time decides, not the number
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNCONFIRMED_SECONDS * 1000)


def set_up_peer(accepted: socket.socket) -> None:
    """Set up a TCP connection that a server has accepted."""
    _keep_alive(accepted, PEER_QUIET_SECONDS, PEER_PROBE_SECONDS, PEER_PROBES)


def _keep_alive(connected: socket.socket, quiet_seconds: int, probe_seconds: int, probes: int) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, quiet_seconds)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_seconds)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
