"""Who takes the kernel's next request: one thread at a time, and the same one again as long as nothing waits.

A thread that takes a request and answers it takes the next one as well, with warm caches and without waking
anybody. Before it waits for something it passes this duty on; where it forgets to, a watch does so for it. It
must not know what the requests are, but for those that want no answer. Threads: any may call `pass_on` and
`take_aside`. Why: docs/decisions/0026.
Sources: the leader/followers pattern (Schmidt and others, 2000); include/uapi/linux/fuse.h
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref
from types import FrameType

from fusefs.operations.structures import Library, RequestBuffer, free, opcode_of

log = logging.getLogger(__name__)

TICK_SECONDS = 0.01
"""A request that takes longer, and did not pass the duty on, loses it."""
QUIET_TICKS = 10
"""After so many ticks without a request the watch sleeps until there is one."""
JOIN_SECONDS = 0.05
CROWDED_WAITS = 8
"""So many waits after one that a request ended, the duty is passed on before the wait."""
FORGET, BATCH_FORGET = 2, 42
WANT_NO_ANSWER = frozenset((FORGET, BATCH_FORGET))
"""Requests that libfuse itself is done with at once, as the mount has no callbacks for them."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAKING_SIGNAL = signal.SIGUSR2
"""Gets a thread out of its read(2); its handler does nothing."""


class _Server:
    """One of the threads, its buffer, and the lock that it waits for while others are on duty."""

    def __init__(self, serve: Callable[[_Server], None]) -> None:
        self.buffer = RequestBuffer()
        self.waits = threading.Lock()
        self.waits.acquire()
        self.thread = threading.Thread(target=serve, args=(self,), name="request", daemon=True)

    @property
    def ident(self) -> int:
        """The thread's, once it was started."""
        return self.thread.ident or 0


class Serving:
    """The threads that answer the requests of one libfuse session.

    Args:
        library: libfuse.
        session: of libfuse; mounted when it is served.
        most_threads: so many requests are under way at once, and no more are taken meanwhile.
    """

    def __init__(self, library: Library, session: int, most_threads: int) -> None:
        self._library, self._session, self._most_threads = library, session, most_threads
        self._descriptor, self._flags = -1, 0
        self._aside = RequestBuffer()
        """For a request that is taken while its taker waits for something else."""
        self._is_held = False
        """Whether there is one in it, which the next thread on duty has to answer."""
        self._lock = threading.Lock()
        self._servers: list[_Server] = []
        self._idle: list[_Server] = []
        self._on_duty = 0
        """The thread that takes the next request; 0: none, as all are busy."""
        self._taken = 0
        self._done = 0
        """As many as are taken, unless who is on duty answers one."""
        self._crowded = 0
        """In so many waits the duty is passed on at once."""
        self._lacks_thread = False
        """Whether nobody may be on duty, for want of a thread."""
        self._is_watch_asleep = False
        self._wake_watch = threading.Event()
        self._ended = threading.Event()
        self._end_told, self._tells_end = os.pipe()
        """Wakes `run`: a signal that comes just before a thread waits for a lock would not end that wait."""
        os.set_blocking(self._tells_end, False)
        for descriptor in (self._end_told, self._tells_end):
            weakref.finalize(self, os.close, descriptor).atexit = False

    def run(self) -> None:
        """Answer requests until it is unmounted or a signal ends it; return when all are answered."""
        self._descriptor = self._library.descriptor(self._session)
        self._flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        with self._lock:
            self._begin_server()
        watch = threading.Thread(target=self._watch, name="watch", daemon=True)
        watch.start()
        while not self._ended.is_set():
            os.read(self._end_told, 64)
        self._library.exit(self._session)
        self._wake_watch.set()
        watch.join()
        with self._lock:
            servers = [*self._servers]  # from now on no more are begun
        for server in servers:
            self._await_end(server)
        if self._is_held:  # nobody went on duty any more
            self._library.process(self._session, byref(self._aside))
        for buffer in (self._aside, *(server.buffer for server in servers)):
            free(buffer.memory)

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Have the signals that end a process end `run` instead, also when they come before it.

        To be called in the main thread, around `run`.
        """

        def end(_number: int, _frame: FrameType | None) -> None:
            self._end()

        def wake(_number: int, _frame: FrameType | None) -> None:
            pass

        before = {number: signal.signal(number, end) for number in ENDING_SIGNALS}
        before[WAKING_SIGNAL] = signal.signal(WAKING_SIGNAL, wake)
        woken_before = signal.set_wakeup_fd(self._tells_end, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken_before)
            for number, handler in before.items():
                signal.signal(number, handler)

    def descriptor(self) -> int:
        """Return what is readable when there is a request; -1 if another thread is to take it.

        While there are many requests another is put on duty at once: each would end a wait for nothing.
        """
        me = threading.get_ident()
        if self._on_duty != me:
            return -1
        if self._crowded:
            self._crowded -= 1
            self._promote_after(me)
            return -1
        return self._descriptor

    def pass_on(self) -> None:
        """Have another thread take the next request, if it is the calling one that would."""
        me = threading.get_ident()
        if self._on_duty == me:
            self._crowded = CROWDED_WAITS
            self._promote_after(me)

    def take_aside(self) -> bool:
        """Take a request if there is one, while the calling thread waits for something else.

        One that wants no answer is done with at once; another is left to the thread that is put on duty. So
        the kernel's forgetting an inode, which follows each removal, does not wake one thread after another.

        Returns:
            Whether the calling thread is on duty still.
        """
        with self._lock:  # the watch puts nobody else on duty meanwhile
            if self._on_duty != threading.get_ident():
                return False
            count = self._receive_at_once()
            if count <= 0:
                return self._goes_on(count)
            if opcode_of(self._aside) in WANT_NO_ANSWER:
                self._library.process(self._session, byref(self._aside))
                return True
            self._is_held, self._crowded = True, CROWDED_WAITS
            self._promote()
            return False

    def _receive_at_once(self) -> int:
        """Receive aside what is there; -EAGAIN if the kernel has taken it back: its asker was killed."""
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._flags | os.O_NONBLOCK)
        try:
            return int(self._library.receive(self._session, byref(self._aside)))
        finally:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, self._flags)

    def _promote_after(self, me: int) -> None:
        """Put another thread on duty if it is this one still: the watch may have been faster."""
        with self._lock:
            if self._on_duty == me:
                self._promote()

    def _promote(self) -> None:
        """Put another thread on duty than the one that is. Call with the lock."""
        self._done, self._on_duty = self._taken, 0
        if self._idle:
            server = self._idle.pop()  # the one that was busy last
            self._on_duty = server.ident
            server.waits.release()
        elif len(self._servers) < self._most_threads and not self._ended.is_set():
            self._begin_server()

    def _begin_server(self) -> None:
        """Begin a thread, which goes on duty if nobody is. Call with the lock.

        If the system has none left, the first one that has answered its request goes on duty, or one that the
        watch can begin meanwhile.
        """
        server = _Server(self._serve)
        try:
            server.thread.start()
        except RuntimeError:
            if not self._lacks_thread:
                log.warning("no more threads can be started: %d answer requests", len(self._servers))
            self._lacks_thread = True
            if self._is_watch_asleep:
                self._wake_watch.set()
        else:
            self._lacks_thread = False
            self._servers.append(server)

    def _serve(self, server: _Server) -> None:
        while not self._ended.is_set():
            self._await_duty(server)
            self._take_requests(server)

    def _take_requests(self, server: _Server) -> None:
        """Take and answer requests as long as this thread is on duty."""
        me, receive, session = server.ident, self._library.receive, self._session
        is_there = self._is_held and self._take_held(server)
        place = byref(server.buffer)
        while is_there or self._on_duty == me:
            count = 1 if is_there else receive(session, place)
            is_there = False
            if count > 0:
                self._taken = number = self._taken + 1
                if self._is_watch_asleep:
                    self._wake_watch.set()
                self._library.process(session, place)
                if self._on_duty == me:
                    self._done = number
            elif not self._goes_on(count):
                return

    def _take_held(self, server: _Server) -> bool:
        """Give a thread the request that was taken aside, if it is on duty and there is one."""
        with self._lock:
            takes = self._is_held and self._on_duty == server.ident
            if takes:
                self._is_held = False
                server.buffer, self._aside = self._aside, server.buffer
        return takes

    def _goes_on(self, count: int) -> bool:
        """Tell whether there may be more requests after one that was not received; if not, end it all."""
        if count in (-errno.EINTR, -errno.EAGAIN) and not self._ended.is_set():
            return True
        if count < 0 and not self._ended.is_set():
            log.error("the kernel's requests cannot be read any more: %s", os.strerror(-count))
        self._end()
        return False

    def _end(self) -> None:
        """Have `run` come to its end. For any thread, and for handlers of signals."""
        self._ended.set()
        with suppress(BlockingIOError):
            os.write(self._tells_end, b"\0")

    def _await_duty(self, server: _Server) -> None:
        with self._lock:
            if self._on_duty == 0:
                self._on_duty = server.ident
            if self._on_duty == server.ident or self._ended.is_set():
                return
            self._idle.append(server)
        server.waits.acquire()

    def _watch(self) -> None:
        """Pass the duty on for a thread that waits without having done so itself."""
        seen, quiet = self._taken, 0
        while not self._ended.is_set():
            self._ended.wait(TICK_SECONDS)
            taken = self._taken
            if taken != seen:
                seen, quiet = taken, 0
            elif self._done != taken or self._lacks_thread:
                with self._lock:
                    if taken == self._taken and (self._done != taken or not self._on_duty):
                        self._promote()
                    self._lacks_thread = self._lacks_thread and not self._on_duty
            else:
                quiet += 1
            if quiet >= QUIET_TICKS:
                quiet = 0
                self._is_watch_asleep = True
                if self._taken == seen and not self._lacks_thread:
                    self._wake_watch.wait()
                self._is_watch_asleep = False
                self._wake_watch.clear()

    def _await_end(self, server: _Server) -> None:
        """Wait until a thread has answered what it answers, and has left."""
        with suppress(RuntimeError):  # it does not wait for duty
            server.waits.release()
        while server.thread.is_alive():
            with suppress(ProcessLookupError):
                signal.pthread_kill(server.ident, WAKING_SIGNAL)
            server.thread.join(JOIN_SECONDS)
