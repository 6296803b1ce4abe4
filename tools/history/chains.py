"""Has a file that is renamed again and again one name at each moment, and its own bytes?

Pure; safe in any thread.
Names change in one step for all mounts (P8), so that the calls of all of them have one order. A rename to
the name that the file has already, from one that another mount has just taken away, may be told to have
succeeded: the kernel takes both for hard links, and there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tools.history.linear import STEPS, Finding, State, by_key, search
from tools.history.record import Call

CHAIN_OPERATIONS = ("place", "rename", "look", "names")


def check_chains(calls: Iterable[Call], steps: int = STEPS) -> list[Finding]:
    """Return what broke, at most one finding a chain. `steps` bounds each search."""
    keys = by_key(calls, CHAIN_OPERATIONS)
    found = (search("P8", key, of_key, _after, steps) for key, of_key in keys.items())
    return [finding for finding in found if finding is not None]


def _after(call: Call, state: State) -> Sequence[State]:
    """The state is "NAME CONTENT", or None before the file is there."""
    name, _, content = (state or "").partition(" ")
    first, there, second = (call.value or "").partition(" ")
    if call.operation == "place":
        return [call.value] if state is None else []
    if call.operation == "rename":
        return [f"{second} {content}"] if state is not None and name in (first, second) else []
    if call.operation == "names":
        return [state] if (call.value or "") == name else []
    right = (call.value or "") == state if first == name else not there
    return [state] if right else []
