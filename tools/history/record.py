"""The format of a history: JSON lines, one per event. Pure; safe in any thread. See docs/histories.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

NEVER_NS = 1 << 63
"""The end of a call without a known answer: it may take effect at any time, or never."""
OPERATIONS = ("write", "read", "create", "append", "list", "balances")
READS = ("read", "list", "balances")
OUTCOMES = ("ok", "fail", "unknown")
LINE_CHARACTERS = 1 << 20


class HistoryError(ValueError):
    """A line that is not of the format; the message names the line."""


class Call(NamedTuple):
    """One call of a client. Times are monotonic nanoseconds; `line` is where its invocation stands."""

    line: int
    client: str
    operation: str
    key: str
    value: str | None
    outcome: str
    start_ns: int
    end_ns: int


def parse(lines: Iterable[str]) -> list[Call]:
    """Return the calls in the order of their invocations. Raises HistoryError."""
    calls: dict[int, Call] = {}
    running: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            _take(calls, running, number, line)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise HistoryError(f"line {number} of the history is not an event: {error}") from error
    return list(calls.values())


def _take(calls: dict[int, Call], running: dict[str, int], number: int, line: str) -> None:
    if len(line) > LINE_CHARACTERS:
        raise ValueError("it is too long")
    event = json.loads(line)
    client, time_ns = _text(event["client"]), event["time_ns"]
    if type(time_ns) is not int or not 0 <= time_ns < NEVER_NS:
        raise ValueError("time_ns is not a time")
    value = None if event.get("value") is None else _text(event["value"])
    if event["event"] == "invoke":
        if client in running:
            raise ValueError(f"client {client} has a call running")
        operation = _one_of(event["operation"], OPERATIONS)
        if operation not in READS and value is None:
            raise ValueError(f"a {operation} has a value")
        calls[number] = Call(
            number, client, operation, _text(event["key"]), value, "unknown", time_ns, NEVER_NS
        )
        running[client] = number
    elif event["event"] == "return":
        call = calls[running.pop(client)]
        if time_ns < call.start_ns:
            raise ValueError("a call returns before it starts")
        outcome = _one_of(event["outcome"], OUTCOMES)
        value = value if call.operation in READS else call.value
        end_ns = NEVER_NS if outcome == "unknown" else time_ns
        calls[call.line] = call._replace(outcome=outcome, value=value, end_ns=end_ns)
    else:
        raise ValueError("event is neither invoke nor return")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _one_of(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)
