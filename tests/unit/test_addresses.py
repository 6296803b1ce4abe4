"""Whether an address is one of this machine: told without taking it from a server that is just started."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tools.addresses import free_addresses, is_elsewhere

ANOTHER_MACHINE = "192.0.2.1:7001"
"""RFC 5737: no machine has it."""


def test_addresses_of_this_machine_and_of_others() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        own = [*free_addresses(1), f"127.0.0.1:{taken.getsockname()[1]}", "localhost:1", "0.0.0.0:7001"]
        assert [is_elsewhere(address) for address in [*own, "unix:/none"]] == [False] * 5
    assert is_elsewhere(ANOTHER_MACHINE)
    assert is_elsewhere("no-such-host.invalid:7001")


def test_a_server_that_is_started_during_a_look_gets_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    (address,) = free_addresses(1)
    bind, listen, refused = socket.socket.bind, socket.socket.listen, []

    def start_server() -> None:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bind(server, ("127.0.0.1", int(address.rpartition(":")[2])))
                listen(server)
                refused.append("")
            except OSError as error:
                refused.append(str(error))

    def meanwhile(step: Any) -> Any:
        def taken(looking: socket.socket, *arguments: Any) -> None:
            step(looking, *arguments)
            start_server()

        return taken

    monkeypatch.setattr(socket.socket, "bind", meanwhile(bind))
    monkeypatch.setattr(socket.socket, "listen", meanwhile(listen))
    assert not is_elsewhere(address)
    assert set(refused) == {""}
