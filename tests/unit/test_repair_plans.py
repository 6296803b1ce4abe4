"""What a repair fills and replaces, by the verdicts: pure functions."""

from __future__ import annotations

import itertools

import pytest

from mediator.repair import plan_repair
from mediator.vote import Verdict
from wire.quorum import Quorum

LETTERS = {"G": Verdict.GOOD, "C": Verdict.CORRUPT, "M": Verdict.MISSING, "D": Verdict.DOWN}


@pytest.mark.parametrize(
    ("pattern", "read", "fill", "replace"),
    [
        ("GGGGG", 3, [], []),
        ("GGGCC", 3, [], [4, 5]),
        ("GGCCC", 3, [], []),
        ("GGMCC", 3, [3], [4, 5]),
        ("GMCCC", 3, [2], []),
        ("CGMMD", 3, [3, 4], [1]),
        ("GDDDD", 1, [], []),
        ("CCCCG", 1, [], [1, 2, 3, 4]),
        ("CCCCC", 1, [], []),
        ("MMMMM", 1, [], []),
        ("CMMMM", 1, [], []),
        ("GCCCC", 2, [], []),
        ("G", 1, [], []),
        ("C", 1, [], []),
    ],
)
def test_repair_plans(pattern: str, read: int, fill: list[int], replace: list[int]) -> None:
    plan = plan_repair(
        Quorum(len(pattern), read, len(pattern)),
        {number: LETTERS[letter] for number, letter in enumerate(pattern, 1)},
    )
    assert (plan.fill, plan.replace) == (fill, replace)


def test_no_repair_plan_touches_a_good_replica_or_works_without_one() -> None:
    for servers in range(1, 6):
        for pattern in itertools.product(Verdict, repeat=servers):
            verdicts = dict(enumerate(pattern, 1))
            for read in range(1, servers + 1):
                plan = plan_repair(Quorum(servers, read, servers), verdicts)
                good = {number for number, verdict in verdicts.items() if verdict is Verdict.GOOD}
                assert not good & {*plan.fill, *plan.replace}
                assert set(plan.sources) == good
                assert good or not (plan.fill or plan.replace)


@pytest.mark.parametrize(
    ("pattern", "read", "doubted", "replace"),
    [
        ("GGGGG", 3, [5], [5]),
        ("GGGCC", 3, [3], [4, 5]),  # a read of some pieces may be refused: next time, if the losers are well
        ("GGGCC", 2, [3], [4, 5, 3]),
        ("GMMMM", 3, [1], [1]),  # once the missing ones are filled from it
        ("GDDDD", 1, [1], []),
        ("CGGGG", 3, [1], [1]),
    ],
)
def test_repair_plans_for_doubted_replicas(
    pattern: str, read: int, doubted: list[int], replace: list[int]
) -> None:
    verdicts = {number: LETTERS[letter] for number, letter in enumerate(pattern, 1)}
    quorum = Quorum(len(pattern), read, len(pattern))
    plan = plan_repair(quorum, verdicts, doubted)
    assert plan.replace == replace
    assert plan[:2] == plan_repair(quorum, verdicts)[:2]
