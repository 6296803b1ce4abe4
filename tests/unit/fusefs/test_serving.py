"""The threads that answer the kernel's requests: which of them takes the next one, and how they end.

The kernel is a pipe here: each byte is a request, and what it asks for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fusefs.operations.serving import BATCH_FORGET, FORGET, Serving
from fusefs.operations.structures import RequestHead
from tests.support import wait_until

READ = ctypes.CDLL(None, use_errno=True).read
MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", ctypes.CDLL(None)))
OPCODES = {b"1": FORGET, b"2": BATCH_FORGET, b"a": 1000, b"c": 1001, b"f": 1002, b"w": 1003}
REQUESTS = {opcode: request for request, opcode in OPCODES.items()}


class PipeLibrary:
    """What Serving uses of libfuse, on a pipe."""

    def __init__(self, answer: Callable[[bytes], None]) -> None:
        self._answer = answer
        self._source, self._sink = os.pipe()
        self.exited = False

    def send(self, request: bytes) -> None:
        os.write(self._sink, request)

    def unmount(self) -> None:
        os.close(self._sink)

    def receive(self, _session: int, buffer: Any) -> int:
        byte = ctypes.create_string_buffer(1)
        count = READ(self._source, byte, 1)
        if count <= 0:
            return -ctypes.get_errno() if count else 0
        request = buffer._obj
        if not request.memory:
            request.memory = MALLOC(ctypes.sizeof(RequestHead))
        request.size = ctypes.sizeof(RequestHead)
        RequestHead.from_address(request.memory).opcode = OPCODES[byte.raw]
        return int(count)

    def process(self, _session: int, buffer: Any) -> None:
        self._answer(REQUESTS[RequestHead.from_address(buffer._obj.memory).opcode])

    def descriptor(self, _session: int) -> int:
        return self._source

    def exit(self, _session: int) -> None:
        self.exited = True


class Kernel:
    """Requests in flight, and by whom they were answered.

    "a" is answered at once; "w" waits for `released`, and says so before; "f" forgets to say so; "1" and "2"
    want no answer; "c" runs `call`.
    """

    def __init__(self, most_threads: int) -> None:
        self.library = PipeLibrary(self._answer)
        self.serving = Serving(self.library, 0, most_threads)  # type: ignore[arg-type]
        self.released = threading.Event()
        self.answered = threading.Semaphore(0)
        self.threads: list[int] = []
        self.call: Callable[[], None] = lambda: None

    def _answer(self, request: bytes) -> None:
        if request == b"c":
            self.call()
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


@pytest.mark.parametrize("waiting", [b"w", b"f"], ids=["says that it waits", "forgets to say so"])
def test_requests_are_answered_also_while_no_thread_can_be_started(
    kernel: Kernel, waiting: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, allowed = threading.Thread.start, threading.Event()
    refused, tried, refusals = threading.Semaphore(0), [], []

    def start_if_allowed(thread: threading.Thread) -> None:
        if thread.name == "request":
            tried.append(thread)
            if len(tried) > 1 and not allowed.is_set():
                refusals.append(thread)
                refused.release()
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_allowed)

    def program() -> None:
        kernel.ask(b"a")
        kernel.library.send(waiting)
        assert refused.acquire(timeout=10)
        kernel.released.set()
        kernel.ask(b"a")
        assert kernel.answered.acquire(timeout=10)
        kernel.released.clear()
        kernel.library.send(waiting)
        for _ in range(3):  # it is tried again
            assert refused.acquire(timeout=10)
        allowed.set()
        kernel.ask(b"a")
        kernel.released.set()
        assert kernel.answered.acquire(timeout=10)

    kernel.while_serving(program, kernel.library.unmount)
    assert len(kernel.threads) == 5
    # Once each time that there are too few: on a busy machine also when an answer takes longer than a tick.
    assert 0 < caplog.text.count("no more threads") < len(refusals)


def test_a_thread_is_tried_again_also_if_the_watch_falls_asleep_meanwhile(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, tried = threading.Thread.start, []

    def start_but_the_second(thread: threading.Thread) -> None:
        if thread.name == "request":
            tried.append(thread)
            if len(tried) == 2:
                wait_until(lambda: kernel.serving._is_watch_asleep, 10, "the watch sleeps")
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_but_the_second)

    def program() -> None:
        kernel.library.send(b"w")
        kernel.ask(b"a")  # while the first one waits
        kernel.released.set()
        assert kernel.answered.acquire(timeout=10)

    kernel.while_serving(program, kernel.library.unmount)


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


@pytest.mark.timeout(30)
def test_a_signal_that_another_thread_gets_ends_it(kernel: Kernel) -> None:
    """Then nothing interrupts what the main thread waits in, nor if it comes just before that wait."""
    kernel.while_serving(
        lambda: kernel.ask(b"a"), lambda: signal.pthread_kill(kernel.threads[0], signal.SIGTERM)
    )
    assert kernel.library.exited


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


@pytest.mark.parametrize("request_", [b"1", b"2"])
def test_what_wants_no_answer_is_done_with_by_who_waits_for_something_else(
    kernel: Kernel, request_: bytes
) -> None:
    kept: list[bool] = []

    def call() -> None:
        for _ in range(3):
            kernel.library.send(request_)
            kept.append(kernel.serving.take_aside())
        kept.append(kernel.serving.descriptor() >= 0)

    def program() -> None:
        kernel.call = call
        kernel.library.send(b"c")
        for _ in range(4):
            assert kernel.answered.acquire(timeout=10)
        kernel.ask(b"a")

    kernel.while_serving(program, kernel.library.unmount)
    assert kept == [True] * 4
    assert len(kernel.threads) == 5
    assert len(set(kernel.threads)) == 1


@pytest.mark.parametrize("most_threads", [4, 1], ids=["another is free", "all are busy"])
def test_what_wants_an_answer_goes_to_the_next_on_duty(most_threads: int) -> None:
    kernel = Kernel(most_threads)
    kept: list[bool] = []

    def call() -> None:
        before = len(kernel.threads)
        kernel.library.send(b"a")
        kept.append(kernel.serving.take_aside())
        kept.append(kernel.serving.take_aside())
        if most_threads > 1:
            wait_until(lambda: len(kernel.threads) > before, 10, "another thread answers meanwhile")

    def program() -> None:
        for _ in range(3):
            kernel.call = call
            kernel.library.send(b"c")
            for _ in range(2):
                assert kernel.answered.acquire(timeout=10)
            kernel.ask(b"a")

    kernel.while_serving(program, kernel.library.unmount)
    assert kept == [False] * 6
    assert len(kernel.threads) == 9


def test_a_request_that_the_kernel_took_back_is_not_waited_for(kernel: Kernel) -> None:
    kept: list[bool] = []
    flags: list[int] = []

    def call() -> None:
        kept.append(kernel.serving.take_aside())
        flags.append(fcntl.fcntl(kernel.library.descriptor(0), fcntl.F_GETFL) & os.O_NONBLOCK)

    def program() -> None:
        kernel.call = call
        kernel.ask(b"c")
        kernel.ask(b"a")

    kernel.while_serving(program, kernel.library.unmount)
    assert kept == [True]
    assert flags == [0]
    assert len(set(kernel.threads)) == 1


def test_a_request_that_was_taken_aside_is_answered_though_all_ends() -> None:
    kernel = Kernel(most_threads=1)

    def call() -> None:
        kernel.library.send(b"a")
        assert not kernel.serving.take_aside()
        os.kill(os.getpid(), signal.SIGTERM)
        assert kernel.serving._ended.wait(10)

    kernel.call = call
    kernel.while_serving(lambda: kernel.library.send(b"c"), lambda: None)
    assert len(kernel.threads) == 2


def test_an_unmount_seen_by_who_waits_for_something_else_ends_it_all(kernel: Kernel) -> None:
    kept: list[bool] = []

    def call() -> None:
        kernel.library.unmount()
        kept.append(kernel.serving.take_aside())

    kernel.call = call
    kernel.while_serving(lambda: kernel.ask(b"c"), lambda: None)
    assert kept == [False]
