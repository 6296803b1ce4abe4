"""Is each list that is appended to whole? Pure; safe in any thread.

Within a mount each reading is a prefix of every later one. Where several mounts take part, a record that is
not yet acknowledged is seen on its own mount first, in a place that is settled only when it is committed:
there it is the records that were acknowledged before a reading that keep their order, and what is not may be
seen at both places by a reading on that mount.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tools.history.linear import Finding, by_key
from tools.history.record import Call


def check_appends(calls: Iterable[Call]) -> list[Finding]:
    """Return the reads of lists that lost, tore, repeated or invented a record, or went back; one a key."""
    keys = by_key(calls, ("append", "list"))
    found = (_broken(key, of_key) for key, of_key in keys.items())
    return [finding for finding in found if finding is not None]


def _broken(key: str, calls: Sequence[Call]) -> Finding | None:
    appends = [call for call in calls if call.operation == "append"]
    reads = [call for call in calls if call.operation == "list"]
    promise = "P8" if len({call.mount for call in calls}) > 1 else "P1"
    for read in reads:
        if not _explained(read, appends, _moving(read, appends) if promise == "P8" else set()):
            return Finding(promise, key, (read,))
    for earlier in reads:
        for later in reads:
            if earlier.end_ns < later.start_ns and not _goes_on(earlier, later, appends, promise):
                return Finding(promise, key, (earlier, later))
    return None


def _moving(read: Call, appends: Sequence[Call]) -> set[str | None]:
    """Return the records that may move while they are read: another mount's may come to lie before them."""
    if all(call.mount == read.mount for call in appends):
        return set()
    return {call.value for call in appends if call.mount == read.mount and call.end_ns >= read.start_ns}


def _explained(read: Call, appends: Sequence[Call], moving: set[str | None]) -> bool:
    *records, rest = (read.value or "").split("\n")
    there = Counter(records)
    needed = Counter(call.value for call in appends if call.end_ns < read.start_ns)
    possible = Counter(call.value for call in appends if call.start_ns <= read.end_ns)
    return (
        not rest
        and all(there[str(value)] >= count for value, count in needed.items())
        and all(count <= possible[value] * (1 + (value in moving)) for value, count in there.items())
    )


def _goes_on(earlier: Call, later: Call, appends: Sequence[Call], promise: str) -> bool:
    if promise == "P1":
        return (later.value or "").startswith(earlier.value or "")
    settled = {call.value for call in appends if call.end_ns < earlier.start_ns}
    return _only(earlier, settled) == _only(later, settled)


def _only(read: Call, records: set[str | None]) -> list[str]:
    return [record for record in (read.value or "").split("\n") if record in records]
