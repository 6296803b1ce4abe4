"""The figures of single calls, and that a wrong answer is no figure."""

from __future__ import annotations

import pytest

from tools.bench_micro import WARM_CALLS, Call, WrongAnswer, time_calls, timing


def test_figures_of_calls() -> None:
    found = timing("wire", "small", [0.001] * 98 + [0.002, 0.1])
    assert (found.calls, found.median_us, found.p99_us) == (100, 1000.0, 2000.0)
    assert found.calls_per_second == pytest.approx(100 / 0.2)


def test_the_first_calls_do_not_count() -> None:
    numbers: list[int] = []
    row = Call("wire", "small", lambda number: number, numbers.append, lambda _, answer: answer is None)
    assert time_calls(row, 10.0, 7).calls == 7
    assert numbers == list(range(WARM_CALLS + 7))


def test_one_call_is_timed_however_long_it_takes() -> None:
    row = Call("wire", "small", lambda number: number, lambda _: None, lambda *_: True)
    assert time_calls(row, 0.0, 7).calls == 1


def test_a_wrong_answer_ends_it() -> None:
    row = Call("wire", "small", lambda number: number, lambda number: number, lambda number, _: number < 8)
    with pytest.raises(WrongAnswer, match="call 8"):
        time_calls(row, 10.0, 20)
