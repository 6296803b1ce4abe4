"""Connections that are passed on to a server by somebody in between. In the thread of who accepts them."""

from __future__ import annotations

import socket
from collections.abc import Callable


def accept_pairs(
    listener: socket.socket,
    upstream: tuple[str, int],
    joined: Callable[[socket.socket, socket.socket], None],
) -> None:
    """Accept until the listener is closed; `joined` gets each client and a connection to the server for it.

    A client is let go of where the server takes no connection.
    """
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(upstream)
        except OSError:
            client.close()
            continue
        for connected in (client, server):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        joined(client, server)
