"""Is each list that is appended to whole? Pure; safe in any thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tools.history.linear import Finding
from tools.history.record import Call


def check_appends(calls: Iterable[Call]) -> list[Finding]:
    """Return the reads of lists that lost, tore, repeated or invented a record, or went back; one a key."""
    keys: dict[str, list[Call]] = {}
    for call in calls:
        if call.operation in ("append", "list") and call.outcome != "fail":
            keys.setdefault(call.key, []).append(call)
    found = ((key, _broken(of_key)) for key, of_key in keys.items())
    return [Finding("P1", key, broken) for key, broken in found if broken]


def _broken(calls: Sequence[Call]) -> tuple[Call, ...]:
    appends = [call for call in calls if call.operation == "append"]
    reads = [call for call in calls if call.operation == "list" and call.outcome == "ok"]
    for read in reads:
        if not _explained(read, appends):
            return (read,)
    for earlier in reads:
        for later in reads:
            if earlier.end_ns < later.start_ns and not (later.value or "").startswith(earlier.value or ""):
                return earlier, later
    return ()


def _explained(read: Call, appends: Sequence[Call]) -> bool:
    *records, rest = (read.value or "").split("\n")
    there = Counter(records)
    needed = Counter(call.value for call in appends if call.end_ns < read.start_ns)
    possible = Counter(call.value for call in appends if call.start_ns <= read.end_ns)
    return (
        not rest
        and all(there[str(value)] >= count for value, count in needed.items())
        and all(count <= possible[value] for value, count in there.items())
    )
