"""Do registers keep what their mounts promise? Pure; safe in any thread.

Within a mount: linearizable. Across mounts a file that is written in place is consistent from close to open
only: each mount may have an order of its own of what was written at the same time, as long as nobody who
begins after a write's end misses it, and all agree while nobody writes. A rename into place is one step
for all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from tools.history.linear import STEPS, Finding, State, by_key, search
from tools.history.record import Call

REGISTER_OPERATIONS = ("write", "replace", "read", "create")


def check_registers(calls: Iterable[Call], steps: int = STEPS) -> list[Finding]:
    """Return what broke, at most one finding a key. `steps` bounds each search."""
    keys = by_key(calls, REGISTER_OPERATIONS)
    found = (_broken(key, of_key, steps) for key, of_key in keys.items())
    return [finding for finding in found if finding is not None]


def _broken(key: str, calls: Sequence[Call], steps: int) -> Finding | None:
    mounts = sorted({call.mount for call in calls})
    if len(mounts) == 1:
        return search("P1", key, calls, _after, steps)
    if not any(call.operation == "write" for call in calls):
        return search("P8", key, calls, _after, steps)
    given_up = None
    for mount in mounts:
        seen_there = [call for call in calls if call.operation != "read" or call.mount == mount]
        found = search("P8", key, seen_there, _after, steps)
        if found is not None and found.promise:
            return found
        given_up = given_up or found
    return _disagreement(key, calls) or given_up


def _after(call: Call, state: State) -> Sequence[State]:
    if call.operation == "read":
        return [state] if call.value == state else []
    return [call.value] if call.operation != "create" or state is None else []


def _disagreement(key: str, calls: Sequence[Call]) -> Finding | None:
    """Find two readings that differ although nobody wrote from the first one's start to the second's end."""
    changes = [call for call in calls if call.operation != "read"]
    starts, ends = sorted(call.start_ns for call in changes), sorted(call.end_ns for call in changes)
    firsts: dict[int, Call] = {}
    for call in calls:
        begun, over = bisect_right(starts, call.end_ns), bisect_left(ends, call.start_ns)
        if call.operation == "read" and begun == over:
            first = firsts.setdefault(begun, call)
            if first.value != call.value:
                return Finding("P8", key, (first, call))
    return None
