"""Do transfers keep the sum of all accounts? Pure; safe in any thread."""

from __future__ import annotations

from collections.abc import Iterable

from tools.history.linear import Finding
from tools.history.record import Call


def check_sums(calls: Iterable[Call]) -> list[Finding]:
    """Return, for each key, the first two readings of all accounts whose totals differ."""
    firsts: dict[str, Call] = {}
    found: dict[str, Finding] = {}
    for call in calls:
        if call.operation == "balances" and call.outcome == "ok":
            first = firsts.setdefault(call.key, call)
            if _total(call) is None or _total(call) != _total(first):
                found.setdefault(call.key, Finding("P1", call.key, (first, call)))
    return list(found.values())


def _total(call: Call) -> int | None:
    try:
        return sum(map(int, (call.value or "").split()))
    except ValueError:
        return None
