"""Is there an order of calls that explains all answers? Pure; safe in any thread.

The search of Wing and Gong (Testing and verifying concurrent objects, 1993) with Lowe's memory of what was
tried (Testing for linearizability, 2017), for each key alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tools.history.record import READS, Call

STEPS = 1_000_000
State = str | None


class Finding(NamedTuple):
    """A promise that broke at some calls; promise "" says that the search was given up."""

    promise: str
    key: str
    calls: tuple[Call, ...]


def by_key(calls: Iterable[Call], operations: Sequence[str]) -> dict[str, list[Call]]:
    """Return the calls of these operations that count, for each key.

    What failed did nothing (P4); a read without an answer saw nothing.
    """
    keys: dict[str, list[Call]] = {}
    for call in calls:
        unknown = call.outcome == "unknown" and call.operation not in READS
        if call.operation in operations and (call.outcome == "ok" or unknown):
            keys.setdefault(call.key, []).append(call)
    return keys


def search(
    promise: str,
    key: str,
    calls: Sequence[Call],
    after: Callable[[Call, State], Sequence[State]],
    steps: int = STEPS,
) -> Finding | None:
    """Return None if some order of the calls explains them: each stands between its start and its end.

    Args:
        promise: what is broken if there is no order.
        key: whose calls these are.
        calls: of one key; those whose outcome is unknown may be left out of the order.
        after: the states that a call may leave behind, from a state; none: it cannot come there. The first
            state is None.
        steps: after so many the search is given up.
    """
    needed = sum(1 << i for i, call in enumerate(calls) if call.outcome == "ok")
    stack: list[tuple[int, State]] = [(0, None)]
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
            for new_state in after(calls[i], state):
                step = (done | 1 << i, new_state)
                if step not in seen:
                    seen.add(step)
                    stack.append(step)
    return Finding(promise, key, stuck)
