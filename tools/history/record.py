"""The format of a history: JSON lines, one per event. Pure; safe in any thread. See docs/histories.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

NEVER_NS = 1 << 63
"""The end of a call without a known answer: it may take effect at any time, or never."""
CHANGES = ("write", "replace", "create", "append", "place", "rename")
READS = ("read", "list", "balances", "look", "names")
OPERATIONS = (*CHANGES, *READS)
OUTCOMES = ("ok", "fail", "unknown")
LINE_CHARACTERS = 1 << 20


class HistoryError(ValueError):
    """A line that is not of the format; the message names the line."""


class Call(NamedTuple):
    """One call of a client. Times are monotonic nanoseconds; `line` is where its invocation stands.

    `mount` names what the client's calls go through; "" if the history does not say, which is one mount.
    """

    line: int
    client: str
    operation: str
    key: str
    value: str | None
    outcome: str
    start_ns: int
    end_ns: int
    mount: str = ""


class Mark(NamedTuple):
    """Something that happened besides the calls, to be shown with them: a message, a vote or a fault.

    A message goes from `source` at `time_ns` to `target` at `end_ns`; of the others `source` says where.
    """

    line: int
    kind: str
    time_ns: int
    end_ns: int
    source: str
    target: str
    text: str


MARKS = ("message", "vote", "fault")


class History(NamedTuple):
    """What a file holds: the calls in the order of their invocations, and the marks."""

    calls: list[Call]
    marks: list[Mark]


def parse(lines: Iterable[str]) -> History:
    """Return what the lines tell. Raises HistoryError."""
    calls: dict[int, Call] = {}
    marks: list[Mark] = []
    running: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            if len(line) > LINE_CHARACTERS:
                raise ValueError("it is too long")
            event = json.loads(line)
            if event["event"] in MARKS:
                marks.append(_mark(number, event))
            else:
                _take(calls, running, number, event)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise HistoryError(f"line {number} of the history is not an event: {error}") from error
    return History(list(calls.values()), marks)


def _mark(number: int, event: dict[str, object]) -> Mark:
    start_ns = _time(event["time_ns"])
    end_ns = _time(event.get("end_ns", start_ns))
    if end_ns < start_ns:
        raise ValueError("a message arrives before it is sent")
    source, target, text = (_text(event.get(name, "")) for name in ("source", "target", "text"))
    return Mark(number, str(event["event"]), start_ns, end_ns, source, target, text)


def _take(calls: dict[int, Call], running: dict[str, int], number: int, event: dict[str, object]) -> None:
    client, time_ns = _text(event["client"]), _time(event["time_ns"])
    value = None if event.get("value") is None else _text(event["value"])
    if event["event"] == "invoke":
        if client in running:
            raise ValueError(f"client {client} has a call running")
        operation = _one_of(event["operation"], OPERATIONS)
        if operation in CHANGES and value is None:
            raise ValueError(f"a {operation} has a value")
        if operation == "rename" and len(str(value).split(" ")) != 2:
            raise ValueError("a rename's value is two names")
        calls[number] = Call(
            number, client, operation, _text(event["key"]), value, "unknown", time_ns, NEVER_NS,
            _text(event.get("mount", "")),
        )  # fmt: skip
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
        raise ValueError("event is neither a call's nor a mark")


def _time(value: object) -> int:
    if type(value) is not int or not 0 <= value < NEVER_NS:
        raise ValueError(f"{value!r} is not a time in nanoseconds")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _one_of(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)
