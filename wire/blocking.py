"""A client's end of the wire for threads: the mount and the tools.

An explicit pool of sockets, newest first; a call owns one socket. No thread-locals: the threads of
libfuse are foreign to Python and come and go. Safe in any thread; not across fork.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from wire.address import parse_address
from wire.backoff import Backoff
from wire.blocking_links import JUST_WAITING, MsgpackSocket, Waiting, XmlSocket
from wire.config import Encoding
from wire.errors import DeadlineExceeded, Interrupted, QuorumfsError, TransportError, Unavailable
from wire.table import Method, method_of

P = ParamSpec("P")
R = TypeVar("R")


LEAST_SECONDS = 1.0
"""A call is tried for so long at least, however long the servers have been away."""
FORGOTTEN_SECONDS = 5.0
"""An outage that no call has met for so long may be over."""


class _Outage(NamedTuple):
    """Since when servers are known to be away, and when that was last seen."""

    since: float
    seen: float


def _share_of(until: float, count: int) -> float:
    """Return until when the first of `count` servers is waited for: one that hangs leaves time for others."""
    if count == 1:
        return until
    now = time.monotonic()
    return now + max(0.0, until - now) / count


def _table_of(method: Callable[..., Any]) -> str:
    return method.__qualname__.partition(".")[0]


class Link(Protocol):
    """One connection that carries one call at a time."""

    def alive(self) -> bool: ...

    def call(self, until: float, name: str, params: Sequence[Any]) -> Any: ...

    def close(self) -> None: ...


class BlockingClient:
    """Calls one of several servers that offer the same.

    Args:
        addresses: tried in turn; the one that answered last is tried first, and gets its share of a call's
            time: half of it, if there are two.
        rpc: the encoding to speak.
        connect_seconds: a connection must be established within.
        waiting: what the thread of a call does while it waits.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        rpc: Encoding = "msgpack",
        *,
        connect_seconds: float = 2.0,
        waiting: Waiting = JUST_WAITING,
    ) -> None:
        if not addresses:
            raise ValueError("a client needs an address")
        kind: type[MsgpackSocket] | type[XmlSocket] = MsgpackSocket if rpc == "msgpack" else XmlSocket
        self._pools = [
            _Pool(partial(kind, parse_address(text), connect_seconds, waiting)) for text in addresses
        ]
        self._first, self._look = 0, waiting.look
        self._outages: dict[str, _Outage] = {}

    def call(
        self,
        deadline_seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a method of a table; send again after temporary errors until the deadline.

        While the servers behind a table have been away for longer than that, it is tried for LEAST_SECONDS
        only: calls that wait for each other, as those in one directory do in the kernel, would add up their
        deadlines. The first answer ends that, and so does `forget_outages`.

        Raises:
            DeadlineExceeded: no answer in time; the call may still be carried out.
            Interrupted: `waiting.look` raised it; the same.
            QuorumfsError: what the server raised, or the last temporary error.
        """
        spec = method_of(method)
        params = spec.positional(args, kwargs)
        begun = time.monotonic()
        until = self._end_of(_table_of(method), begun, deadline_seconds)
        backoff: Backoff | None = None
        while True:
            try:
                result = self._try_all(spec, until, params)
                if self._outages:
                    self._outages.pop(_table_of(method), None)
                return result  # type: ignore[no-any-return]
            except QuorumfsError as error:
                error.resent = error.resent or backoff is not None
                backoff = backoff or Backoff()
                wait_seconds = backoff.next_seconds()
                self._note_outage(_table_of(method), error, begun)
                until = min(until, self._end_of(_table_of(method), begun, deadline_seconds))
                if not error.temporary or time.monotonic() + wait_seconds >= until:
                    raise
            time.sleep(wait_seconds)
            self._look()

    def call_once(
        self,
        deadline_seconds: float,
        method: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a method of a table: one attempt at each address until one answers.

        Raises:
            Unavailable: no connection, or it broke; at once if the connection is refused.
            DeadlineExceeded: no answer in time; the call may still be carried out.
            QuorumfsError: what the server raised.
        """
        spec = method_of(method)
        until = time.monotonic() + deadline_seconds
        return self._try_all(spec, until, spec.positional(args, kwargs))  # type: ignore[no-any-return]

    def forget_outages(self) -> None:
        """Give each call its whole deadline again: the servers behind all tables have just answered."""
        self._outages.clear()

    def close(self) -> None:
        """Close all connections. A call in flight ends first; later ones fail with Unavailable."""
        for pool in self._pools:
            pool.close()

    def _note_outage(self, table: str, error: QuorumfsError, begun: float) -> None:
        """Note whether a call that began then has found the servers behind a table to be away."""
        if not isinstance(error, TransportError):
            self._outages.pop(table, None)
            return
        now = time.monotonic()
        since = begun if isinstance(error, DeadlineExceeded) else now
        known = self._outages.get(table)
        if known is not None and now - known.seen < FORGOTTEN_SECONDS:
            since = min(since, known.since)
        self._outages[table] = _Outage(since, now)

    def _end_of(self, table: str, begun: float, deadline_seconds: float) -> float:
        """Return until when a call that began then is tried, by what is known of the servers now."""
        known = self._outages.get(table)
        if known is None or begun - known.seen >= FORGOTTEN_SECONDS:
            return begun + deadline_seconds
        least = min(LEAST_SECONDS, deadline_seconds)
        return begun + max(least, min(deadline_seconds, known.since + deadline_seconds - begun))

    def _try_all(self, spec: Method, until: float, params: list[Any]) -> Any:
        first, count, sent = self._first, len(self._pools), False
        for turn in range(count):
            index, sent_before = (first + turn) % count, sent
            pool, share_until = self._pools[index], _share_of(until, count - turn)
            try:
                link = pool.take(share_until)
                sent = True
                result = pool.call(link, share_until, spec.name, params)
            except QuorumfsError as error:
                error.resent = sent_before  # who had it before may have passed it on, and lost the answer
                is_for_others = error.temporary or isinstance(error, DeadlineExceeded)
                if not is_for_others:
                    self._first = index  # a refusal is an answer, too
                    raise
                if turn == count - 1:
                    raise
                continue
            self._first = index
            return spec.answer(result)
        raise AssertionError("there is at least one address")


class _Pool:
    """The idle connections to one address. list.append and list.pop are atomic: no lock is needed."""

    def __init__(self, connect: Callable[[float], Link]) -> None:
        self._connect = connect
        self._idle: list[Link] = []
        self._closed = False

    def call(self, link: Link, until: float, name: str, params: Sequence[Any]) -> Any:
        """Call by a connection that was taken; it is idle afterwards, if it is of use still."""
        keep = False
        try:
            result = link.call(until, name, params)
            keep = True
            return result
        except (Unavailable, DeadlineExceeded, Interrupted):
            raise  # what was half sent or may still come makes the connection useless
        except QuorumfsError:
            keep = link.alive()
            raise
        finally:
            if keep and not self._closed:
                self._idle.append(link)
            else:
                link.close()

    def take(self, until: float) -> Link:
        """Return a connection for one call. Raises Unavailable: there is none, and nothing was sent."""
        if self._closed:
            raise Unavailable("this client was closed")
        while self._idle:
            try:
                link = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if link.alive():
                return link
            link.close()
        return self._connect(until)

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()
