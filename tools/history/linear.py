"""Are registers linearizable? Pure; safe in any thread.

The search of Wing and Gong (Testing and verifying concurrent objects, 1993) with Lowe's memory of what was
tried (Testing for linearizability, 2017), for each key alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tools.history.record import Call

STEPS = 1_000_000
REGISTER_OPERATIONS = ("write", "read", "create")


class Finding(NamedTuple):
    """A promise that broke at some calls; promise "" says that the search was given up."""

    promise: str
    key: str
    calls: tuple[Call, ...]


def check_registers(calls: Iterable[Call], steps: int = STEPS) -> list[Finding]:
    """Return what broke, at most one finding a key. `steps` bounds the search of one key."""
    keys: dict[str, list[Call]] = {}
    for call in calls:
        if call.operation not in REGISTER_OPERATIONS:
            continue
        # What failed did nothing (P4); a read without an answer saw nothing.
        if call.outcome == "ok" or (call.outcome == "unknown" and call.operation != "read"):
            keys.setdefault(call.key, []).append(call)
    found = (_search(key, of_key, steps) for key, of_key in keys.items())
    return [finding for finding in found if finding is not None]


def _search(key: str, calls: Sequence[Call], steps: int) -> Finding | None:
    needed = sum(1 << i for i, call in enumerate(calls) if call.outcome == "ok")
    stack: list[tuple[int, str | None]] = [(0, None)]
    seen = set(stack)
    deepest, stuck = -1, ()  # type: int, tuple[Call, ...]
    while stack:
        done, state = stack.pop()
        if done & needed == needed:
            return None
        if len(seen) > steps:
            return Finding("", key, ())
        rest = [i for i in range(len(calls)) if not done >> i & 1]
        first_end_ns = min(calls[i].end_ns for i in rest)
        ready = [i for i in rest if calls[i].start_ns <= first_end_ns]
        if (done & needed).bit_count() > deepest:
            deepest = (done & needed).bit_count()
            stuck = tuple(calls[i] for i in ready if calls[i].outcome == "ok")
        for i in ready:
            call = calls[i]
            after = (done | 1 << i, state if call.operation == "read" else call.value)
            if _allowed(call, state) and after not in seen:
                seen.add(after)
                stack.append(after)
    return Finding("P1", key, stuck)


def _allowed(call: Call, state: str | None) -> bool:
    if call.operation == "read":
        return call.value == state
    return call.operation == "write" or state is None
