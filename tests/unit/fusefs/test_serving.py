"""The threads that answer the kernel's requests: which of them takes the next one, and how they end.

The kernel is a pipe here: each byte is a request, and what it asks for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fusefs.operations.serving import Serving
from tests.support import wait_until

READ = ctypes.CDLL(None, use_errno=True).read


class PipeLibrary:
    """What Serving uses of libfuse, on a pipe."""

    def __init__(self, answer: Callable[[bytes], None]) -> None:
        self._answer = answer
        self._source, self._sink = os.pipe()
        self.requests: dict[int, bytes] = {}
        self.exited = False

    def send(self, request: bytes) -> None:
        os.write(self._sink, request)

    def unmount(self) -> None:
        os.close(self._sink)

    def receive(self, _session: int, _buffer: Any) -> int:
        byte = ctypes.create_string_buffer(1)
        count = READ(self._source, byte, 1)
        if count < 0:
            return -ctypes.get_errno()
        self.requests[threading.get_ident()] = byte.raw
        return int(count)

    def process(self, _session: int, _buffer: Any) -> None:
        self._answer(self.requests[threading.get_ident()])

    def descriptor(self, _session: int) -> int:
        return self._source

    def exit(self, _session: int) -> None:
        self.exited = True


class Kernel:
    """Requests in flight, and by whom they were answered.

    "a" is answered at once; "w" waits for `released`, and says so before; "f" forgets to say so.
    """

    def __init__(self, most_threads: int) -> None:
        self.library = PipeLibrary(self._answer)
        self.serving = Serving(self.library, 0, most_threads)  # type: ignore[arg-type]
        self.released = threading.Event()
        self.answered = threading.Semaphore(0)
        self.threads: list[int] = []

    def _answer(self, request: bytes) -> None:
        if request == b"w":
            self.serving.pass_on()
        if request in b"wf":
            assert self.released.wait(10)
        self.threads.append(threading.get_ident())
        self.answered.release()

    def ask(self, request: bytes) -> None:
        """Send a request and wait until it, or one before it, is answered."""
        self.library.send(request)
        assert self.answered.acquire(timeout=10), "a request is not answered"

    def while_serving(self, program: Callable[[], None], end: Callable[[], None]) -> None:
        """Serve in this thread while a program runs in another, and then `end`."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                program()
            except BaseException as error:
                failures.append(error)
            finally:
                self.released.set()
                end()

        thread = threading.Thread(target=run)
        thread.start()
        with self.serving.ended_by_signals():
            self.serving.run()
        thread.join()
        assert not failures, failures[0]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    yield Kernel(most_threads=4)


def test_one_thread_answers_all_requests_that_come_one_after_the_other(kernel: Kernel) -> None:
    def program() -> None:
        for _ in range(50):
            kernel.ask(b"a")

    kernel.while_serving(program, kernel.library.unmount)
    assert len(kernel.threads) == 50
    assert len(set(kernel.threads)) == 1


@pytest.mark.parametrize("is_quiet", [False, True], ids=["busy before", "quiet before"])
@pytest.mark.parametrize("waiting", [b"w", b"f"], ids=["says that it waits", "forgets to say so"])
def test_a_request_that_waits_holds_no_other_up(kernel: Kernel, waiting: bytes, is_quiet: bool) -> None:
    def program() -> None:
        if is_quiet:
            wait_until(lambda: kernel.serving._is_watch_asleep, 10, "the watch sleeps")
        kernel.library.send(waiting)
        for _ in range(10):
            kernel.ask(b"a")
        kernel.released.set()
        assert kernel.answered.acquire(timeout=10)

    kernel.while_serving(program, kernel.library.unmount)
    assert len(kernel.threads) == 11


def test_no_more_requests_are_taken_than_there_may_be_threads_and_all_are_answered(kernel: Kernel) -> None:
    def program() -> None:
        for _ in range(6):
            kernel.library.send(b"w")
        kernel.released.set()
        for _ in range(6):
            assert kernel.answered.acquire(timeout=10)
        for _ in range(5):
            kernel.ask(b"a")

    kernel.while_serving(program, kernel.library.unmount)
    assert len(kernel.threads) == 11
    assert len(set(kernel.threads)) <= 4


def test_a_signal_ends_it_when_what_is_under_way_is_answered(kernel: Kernel) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def program() -> None:
        kernel.ask(b"a")
        kernel.library.send(b"w")
        kernel.ask(b"a")

    kernel.while_serving(program, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert len(kernel.threads) == 3
    assert kernel.library.exited
    assert signal.getsignal(signal.SIGTERM) is before


def test_requests_that_cannot_be_read_end_it(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.library.receive = lambda _session, _buffer: -errno.EIO  # type: ignore[method-assign]
    with kernel.serving.ended_by_signals():
        kernel.serving.run()
    assert "cannot be read any more" in caplog.text
    kernel.library.unmount()


def test_only_the_thread_on_duty_is_told_of_requests_beside_its_calls(kernel: Kernel) -> None:
    told: list[int] = []
    kernel.library.process = lambda _session, _buffer: (  # type: ignore[method-assign]
        told.append(kernel.serving.descriptor()),
        kernel.serving.pass_on(),
        told.append(kernel.serving.descriptor()),
        kernel.answered.release(),
    )
    assert kernel.serving.descriptor() == -1
    kernel.while_serving(lambda: kernel.ask(b"a"), kernel.library.unmount)
    assert told == [kernel.library.descriptor(0), -1]
