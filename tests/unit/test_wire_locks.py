"""Ranges of locks: tables, and a random check against a file that has a set of holders for each byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.locks import LAST, Lock, closes_a_circle, conflicts, locked, unlocked, weakened

BYTES = 12


def lock(owner: int, start: int, last: int, exclusive: bool = True, session: int = 1) -> Lock:
    return Lock(session, owner, start, last, exclusive, 0)


@pytest.mark.parametrize(
    ("held", "change", "wanted", "after"),
    [
        ([], locked, lock(1, 0, 9), [lock(1, 0, 9)]),
        ([lock(1, 0, 9)], locked, lock(1, 3, 5, False), [lock(1, 0, 2), lock(1, 3, 5, False), lock(1, 6, 9)]),
        ([lock(1, 0, 2), lock(1, 6, 9)], locked, lock(1, 3, 5), [lock(1, 0, 9)]),
        ([lock(1, 0, 2, False)], locked, lock(1, 3, 5), [lock(1, 0, 2, False), lock(1, 3, 5)]),
        ([lock(1, 0, 9, False)], locked, lock(1, 0, 9), [lock(1, 0, 9)]),
        ([lock(1, 0, 4), lock(2, 7, 9)], locked, lock(1, 5, 6), [lock(1, 0, 6), lock(2, 7, 9)]),
        ([lock(1, 0, 9)], unlocked, lock(1, 3, 5), [lock(1, 0, 2), lock(1, 6, 9)]),
        ([lock(1, 0, LAST)], unlocked, lock(1, 5, LAST), [lock(1, 0, 4)]),
        ([lock(1, 0, 9)], unlocked, lock(2, 0, 9), [lock(1, 0, 9)]),
        ([lock(1, 0, 9)], unlocked, lock(1, 0, 9, session=2), [lock(1, 0, 9)]),
        ([lock(1, 0, 9, False)], weakened, lock(1, 0, 9), [lock(1, 0, 9, False)]),
        ([lock(1, 0, 4)], weakened, lock(1, 3, 9, False), [lock(1, 0, 2), lock(1, 3, 4, False)]),
        ([lock(2, 0, 4)], weakened, lock(1, 3, 9, False), [lock(2, 0, 4)]),
    ],
)
def test_ranges(held: list[Lock], change: object, wanted: Lock, after: list[Lock]) -> None:
    assert sorted(change(held, wanted)) == sorted(after)


@pytest.mark.parametrize(
    ("held", "wanted", "stands"),
    [
        (lock(1, 0, 9), lock(2, 9, 9), True),
        (lock(1, 0, 9), lock(2, 10, 19), False),
        (lock(1, 0, 9, False), lock(2, 0, 9, False), False),
        (lock(1, 0, 9, False), lock(2, 0, 9), True),
        (lock(1, 0, 9), lock(2, 0, 9, False), True),
        (lock(1, 0, 9), lock(1, 0, 9), False),
        (lock(1, 0, 9), lock(1, 0, 9, session=2), True),
    ],
)
def test_conflicts(held: Lock, wanted: Lock, stands: bool) -> None:
    assert conflicts([held], wanted) == ([held] if stands else [])


STEP = st.tuples(
    st.booleans(), st.integers(1, 3), st.integers(0, BYTES - 1), st.integers(0, BYTES - 1), st.booleans()
)


@given(st.lists(STEP, max_size=40))
def test_as_a_file_with_holders_of_each_byte(steps: list[tuple[bool, int, int, int, bool]]) -> None:
    held: list[Lock] = []
    model: list[dict[int, bool]] = [{} for _ in range(BYTES)]
    for unlock, owner, one, two, exclusive in steps:
        wanted = lock(owner, min(one, two), max(one, two), exclusive)
        range_ = model[wanted.start : wanted.last + 1]
        stands = any(
            other != owner and (mode or exclusive) for byte in range_ for other, mode in byte.items()
        )
        assert bool(conflicts(held, wanted)) == stands
        if unlock:
            held = unlocked(held, wanted)
            for byte in range_:
                byte.pop(owner, None)
        elif not stands:
            held = locked(held, wanted)
            for byte in range_:
                byte[owner] = exclusive
        told: list[dict[int, bool]] = [{} for _ in range(BYTES)]
        for each in held:
            for byte in told[each.start : each.last + 1]:
                assert each.owner not in byte, "an owner's locks never overlap"
                byte[each.owner] = each.exclusive
        assert told == model
        same = [(a, b) for a in held for b in held if a[:2] == b[:2] and a.exclusive == b.exclusive]
        assert not any(a.last + 1 == b.start for a, b in same), "neighbours are one"


def test_circles() -> None:
    one, two, three = lock(1, 0, 0), lock(2, 1, 1), lock(3, 2, 2)
    wants_two, wants_three, wants_one = lock(1, 1, 1), lock(2, 2, 2), lock(3, 0, 0)
    waits = [(wants_two, [two]), (wants_three, [three])]
    assert closes_a_circle(wants_one, [one], waits)
    assert not closes_a_circle(wants_one, [one], waits[:1])
    assert not closes_a_circle(lock(4, 0, 0), [one], [*waits, (wants_one, [one])])
