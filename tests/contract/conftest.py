"""Fixtures of the wire's contract tests: a loop on a thread, the log, and every way to call."""

from __future__ import annotations

import logging
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.wire_support import (
    LogLines,
    LoopThread,
    loop_thread,
)
from wire import blocking_links, client_msgpack
from wire.config import Encoding


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    with loop_thread() as running:
        yield running


@pytest.fixture
def log() -> Iterator[LogLines]:
    handler = LogLines()
    logging.getLogger("wire").addHandler(handler)
    yield handler
    logging.getLogger("wire").removeHandler(handler)


@pytest.fixture
def tcp_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the clients call over TCP although a Unix socket is beside it."""
    for client in (client_msgpack, blocking_links):
        monkeypatch.setattr(client, "connect_beside", lambda address: None)


@pytest.fixture(params=["tcp", "beside", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "tcp":
        request.getfixturevalue("tcp_only")
    return f"unix:{tmp_path}/socket" if request.param == "unix" else "127.0.0.1:0"


@pytest.fixture(params=["msgpack", "xml"])
def rpc(request: pytest.FixtureRequest) -> Encoding:
    return typing.cast(Encoding, request.param)


@pytest.fixture(params=["async", "blocking"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
