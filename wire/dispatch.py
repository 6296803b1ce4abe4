"""What one server answers: the methods of its tables, by name, for both encodings.

It knows no encoding and no connection. Runs on the server's event loop only; tables are
registered before the server starts.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wire.digest import BLOCK_BYTES
from wire.errors import BadRequest, InternalError, MessageTooLarge, QuorumfsError, UnknownMethod
from wire.messages import SMALL_BLOCK_BYTES, SMALL_FILES_AT_ONCE
from wire.sizes import memory_bytes
from wire.table import Method, check_implementation, methods_of

log = logging.getLogger("wire.dispatch")

MOST_CALLS_IN_MULTICALL = 1000
MOST_BYTES_OF_MULTICALL = 8 * 1024 * 1024
"""Of results: a thousand long ones would take a gigabyte, and no client of ours reads such an answer."""
MOST_BYTES_OF_ALL_MULTICALLS = 8 * 1024 * 1024
"""Of results of all those that are being carried out, and of what the calls under way in them may answer."""

_LONG_ANSWERS = {
    "get": BLOCK_BYTES,
    "read_block": BLOCK_BYTES,
    "open_and_read": SMALL_BLOCK_BYTES,
    "quarantine_read": BLOCK_BYTES,
    "read_copy": BLOCK_BYTES,
    "read_small": SMALL_FILES_AT_ONCE * SMALL_BLOCK_BYTES,
    "read_small_files": SMALL_FILES_AT_ONCE * SMALL_BLOCK_BYTES,
}
"""How long the answers of methods may be, where that is so long that few of them may be made at once."""
_WAIT_FOR_CALLERS = frozenset({"wait_lock"})
"""Methods whose calls wait for what other callers do: they must not keep those from being read."""

Send = Callable[[str, list[Any]], Awaitable[Any]]
Before = Callable[[], Awaitable[None] | None]
"""Does something that calls have to come after; returns what is to be waited for, None if nothing is."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One method as a server offers it: how its parameters are read, and what is called.

    `function` returns the result, or a coroutine or future of it. `answer_bytes` is how long its answers may
    be, as far as that matters. `waits_for_callers`: its calls do.
    """

    name: str
    answer_bytes: int
    waits_for_callers: bool
    arguments: Callable[[Any], list[Any]]
    function: Callable[..., Any]
    help: str
    signatures: list[list[str]]


class Dispatch:
    """The methods of one server, among them the four of introspection."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._multicall_bytes = 0
        for name, method in methods_of(_SystemMethods).items():
            function = getattr(self, "_" + name)
            self._add(_entry(f"system.{name}", method, function))

    def register(
        self,
        table: type,
        implementation: object,
        only: Collection[str] | None = None,
        before: Before | None = None,
    ) -> None:
        """Offer the methods of a table, carried out by an object's methods of the same names.

        Args:
            table: the method table.
            implementation: has a plain or async method, with the same parameters, for each. A plain one may
                return a coroutine or future of its result, where only some calls have to wait.
            only: names of the methods to offer; all if None.
            before: is called before each of them, and what it returns waited for, until it returns None.

        Raises:
            TypeError: a method is missing, takes other parameters, or is offered twice.
        """
        for method in _chosen(table, only):
            function = getattr(implementation, method.name, None)
            if function is None:
                raise TypeError(f"{implementation!r} lacks {method.name} of {table.__name__}")
            check_implementation(method, function)
            chosen = function if before is None else _after(before, function)
            self._add(_entry(method.name, method, chosen))

    def forward(self, table: type, send: Send, *, exclude: Collection[str] = ()) -> None:
        """Offer the methods of a table by passing raw parameters on and the raw result back.

        The parameters are checked where they are used, behind `send`.
        """
        for method in _chosen(table, None):
            if method.name not in exclude:
                self._add(_forwarding(method, send))

    def _add(self, entry: Entry) -> None:
        if entry.name in self.entries:
            raise TypeError(f"the method {entry.name} is offered twice")
        self.entries[entry.name] = entry

    def find(self, name: Any) -> Entry:
        """Return a method by name. Raises BadRequest or UnknownMethod."""
        if type(name) is not str:
            raise BadRequest("a method's name is a string")
        try:
            return self.entries[name]
        except KeyError:
            raise UnknownMethod(
                f"{name[:100]!r} is not offered here; system.listMethods tells what is"
            ) from None

    async def call(self, name: Any, params: Any) -> Any:
        """Carry out one call from plain parameters; return its result. Raises QuorumfsError only."""
        try:
            entry = self.find(name)
            result = entry.function(*entry.arguments(params))
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            raise as_quorumfs_error(error, name) from None

    def _listMethods(self) -> list[str]:
        return sorted(self.entries)

    def _methodHelp(self, name: str) -> str:
        return self.find(name).help

    def _methodSignature(self, name: str) -> list[list[str]]:
        return self.find(name).signatures

    async def _multicall(self, calls: list[dict[str, Any]]) -> list[Any]:
        if len(calls) > MOST_CALLS_IN_MULTICALL:
            raise BadRequest(f"system.multicall takes at most {MOST_CALLS_IN_MULTICALL} calls")
        answers, size = [], 0
        try:
            for call in calls:
                has_room = (
                    size < MOST_BYTES_OF_MULTICALL and self._multicall_bytes < MOST_BYTES_OF_ALL_MULTICALLS
                )
                answer = await self._promised_call_of_many(call) if has_room else _NO_ROOM
                answers.append(answer)
                answer_bytes = memory_bytes(answer)
                size += answer_bytes
                self._multicall_bytes += answer_bytes
        finally:
            self._multicall_bytes -= size
        return answers

    async def _promised_call_of_many(self, call: dict[str, Any]) -> Any:
        """Count what a call may answer from its beginning on: many multicalls may be at one at a time."""
        entry = self.entries.get(str(call.get("methodName")))
        promised_bytes = entry.answer_bytes if entry else 0
        self._multicall_bytes += promised_bytes
        try:
            return await self._call_of_many(call)
        finally:
            self._multicall_bytes -= promised_bytes

    async def _call_of_many(self, call: dict[str, Any]) -> Any:
        try:
            if call.get("methodName") == "system.multicall":
                raise BadRequest("system.multicall does not call itself")
            return [await self.call(call.get("methodName"), call.get("params", []))]
        except QuorumfsError as error:
            return _fault(error)


class _SystemMethods:
    """The introspection that XML-RPC servers offer by convention, as one more table."""

    def listMethods(self) -> list[str]:
        """Return the names of all methods of this server."""
        raise NotImplementedError

    def methodHelp(self, name: str) -> str:
        """Return what a method does, in words. Raises UnknownMethod."""
        raise NotImplementedError

    def methodSignature(self, name: str) -> list[list[str]]:
        """Return the ways to call a method, each the type of its result, then those of its parameters."""
        raise NotImplementedError

    def multicall(self, calls: list[dict[str, Any]]) -> list[Any]:
        """Carry out several calls {methodName, params}, one after the other.

        Returns:
            For each call a list with its result, or a struct {faultCode, faultString}. Once the results have
            8 MiB, or those of all multicalls under way, further calls are not carried out, and their
            fault is 203 (MessageTooLarge).
        """
        raise NotImplementedError


def _fault(error: QuorumfsError) -> dict[str, Any]:
    return {"faultCode": error.fault_code, "faultString": error.message}


_NO_ROOM = _fault(MessageTooLarge("the results before this one are long: call it by itself"))


def _chosen(table: type, only: Collection[str] | None) -> list[Method]:
    methods = methods_of(table)
    if only is not None and (unknown := set(only) - set(methods)):
        raise TypeError(f"{table.__name__} has no {sorted(unknown)}")
    return [method for name, method in methods.items() if only is None or name in only]


def _entry(name: str, method: Method, function: Callable[..., Any]) -> Entry:
    answer_bytes = _LONG_ANSWERS.get(name, 0)
    waits = name in _WAIT_FOR_CALLERS
    return Entry(name, answer_bytes, waits, method.arguments, function, method.help, method.signatures)


def _after(before: Before, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does something first. What waits for nothing costs no coroutine."""

    def call(*args: Any) -> Any:
        wait = before()
        return function(*args) if wait is None else call_later(wait, args)

    async def call_later(wait: Awaitable[None] | None, args: tuple[Any, ...]) -> Any:
        while wait is not None:
            await wait
            wait = before()
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    return call


def _forwarding(method: Method, send: Send) -> Entry:
    def listed(params: Any) -> list[Any]:
        if type(params) is not list:
            raise BadRequest(f"{method.name}: parameters are a list")
        return [params]

    return replace(_entry(method.name, method, partial(send, method.name)), arguments=listed)


def as_quorumfs_error(error: BaseException, name: Any) -> QuorumfsError:
    """Return the error to answer; one that is none of ours is a defect: logged once, with its traceback."""
    if isinstance(error, QuorumfsError):
        return error
    log.error("%s failed by a defect", name, exc_info=error)
    return InternalError(
        f"{name} failed by a defect of the server ({type(error).__name__}); its log tells more"
    )
