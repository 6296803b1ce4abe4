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


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/socket"


@pytest.fixture(params=["msgpack", "xml"])
def rpc(request: pytest.FixtureRequest) -> Encoding:
    return typing.cast(Encoding, request.param)


@pytest.fixture(params=["async", "blocking"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
