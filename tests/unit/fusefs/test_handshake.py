"""The answer to the kernel's first request, with what libfuse does not say in it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from fusefs.operations.handshake import HANDLE_KILLPRIV_V2, INIT, shake_hands
from wire.config import ConfigError

GETATTR = 3
OTHER_FLAGS = 1 << 18 | 1
MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", ctypes.CDLL(None)))


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def request(opcode: int, flags: int) -> bytes:
    body = words(7, 45, 1 << 20, flags, 0, *[0] * 11)
    return words(40 + len(body), opcode, *[0] * 8) + body


def answer(flags: int, error: int = 0) -> bytes:
    body = b"" if error else words(7, 38, 1 << 20, flags, *[0] * 12)
    return words(16 + len(body), error & 0xFFFFFFFF, 9, 0) + body


class FakeLibrary:
    """Receives one request, and writes one answer to where the kernel is."""

    def __init__(self, device: int, received: bytes | int, answered: bytes) -> None:
        self._device, self._received, self._answered = device, received, answered
        self.processed = 0

    def descriptor(self, _session: Any) -> int:
        return self._device

    def receive(self, _session: Any, place: Any) -> int:
        if isinstance(self._received, int):
            return self._received
        buffer = place._obj
        buffer.memory, buffer.size = MALLOC(len(self._received)), len(self._received)
        ctypes.memmove(buffer.memory, self._received, len(self._received))
        return len(self._received)

    def process(self, _session: Any, _place: Any) -> None:
        self.processed += 1
        if self._answered:
            os.write(self._device, self._answered)


@pytest.fixture
def device() -> Iterator[tuple[int, int]]:
    """Where libfuse writes its answers, and where the kernel reads them."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield writing, reading
    os.close(reading)
    os.close(writing)


def told(device: tuple[int, int], received: bytes | int, answered: bytes) -> bytes:
    """Return what the kernel is told."""
    library: Any = FakeLibrary(device[0], received, answered)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    try:
        shake_hands(library, 1)
    finally:
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not os.get_inheritable(device[0]) or received == -errno.ENODEV
    try:
        return os.read(device[1], 4096)
    except BlockingIOError:
        return b""


def test_the_flag_is_added_where_the_kernel_has_it(device: tuple[int, int]) -> None:
    asked = request(INIT, HANDLE_KILLPRIV_V2 | OTHER_FLAGS)
    assert told(device, asked, answer(OTHER_FLAGS)) == answer(OTHER_FLAGS | HANDLE_KILLPRIV_V2)
    os.write(device[0], b"next")
    assert os.read(device[1], 64) == b"next"


def test_an_older_kernel_is_told_what_libfuse_says(device: tuple[int, int]) -> None:
    assert told(device, request(INIT, OTHER_FLAGS), answer(OTHER_FLAGS)) == answer(OTHER_FLAGS)


def test_an_error_stays_one(device: tuple[int, int]) -> None:
    refused = answer(0, -errno.EPROTO)
    assert told(device, request(INIT, HANDLE_KILLPRIV_V2), refused) == refused


def test_another_request_is_answered_as_it_is(device: tuple[int, int]) -> None:
    assert told(device, request(GETATTR, HANDLE_KILLPRIV_V2), b"attributes") == b"attributes"


def test_what_is_unmounted_at_once_is_told_nothing(device: tuple[int, int]) -> None:
    assert told(device, -errno.ENODEV, b"") == b""


def test_a_kernel_without_an_answer_fails_the_mount(device: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="libfuse does not answer"):
        told(device, request(INIT, HANDLE_KILLPRIV_V2), b"")
    os.write(device[0], b"next")
    assert os.read(device[1], 64) == b"next"


@pytest.mark.parametrize(
    ("number", "fails"), [(errno.EINVAL, True), (errno.ENODEV, False), (errno.ENOENT, False)]
)
def test_an_answer_that_the_kernel_does_not_take_fails_the_mount(
    device: tuple[int, int], monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    writes, written = os.write, answer(OTHER_FLAGS)

    def write(to: int, data: bytes) -> int:
        if data != written:
            raise OSError(number, os.strerror(number))
        return writes(to, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ConfigError, match="does not take") if fails else nullcontext():
        assert told(device, request(INIT, HANDLE_KILLPRIV_V2), written) == b""
