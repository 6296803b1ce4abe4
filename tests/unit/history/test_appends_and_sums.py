"""The checkers of appends and of sums on histories known to be good and bad."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.unit.history.test_registers import call
from tools.cli import main
from tools.history.appends import check_appends
from tools.history.record import Call
from tools.history.registers import check_registers
from tools.history.sums import check_sums

APPENDED = [call(1, "append", "a", 0, 1), call(2, "append", "b", 2, 3), call(3, "append", "c", 4, None)]


@pytest.mark.parametrize("value", ["a\nb\n", "b\na\n", "a\nb\nc\n"])
def test_good_lists(value: str) -> None:
    assert check_appends([*APPENDED, call(4, "list", value, 5, 6)]) == []


@pytest.mark.parametrize("value", [None, "a\n", "a\nb", "a\nb\nb\n", "a\nb\nx\n", "ab\n\n"])
def test_bad_lists(value: str | None) -> None:
    assert check_appends([*APPENDED, call(4, "list", value, 5, 6)])


def test_a_list_that_goes_back_or_tells_the_future() -> None:
    first = call(4, "list", "a\nb\nc\n", 5, 6)
    assert check_appends([*APPENDED, first, call(5, "list", "a\nb\n", 7, 8)])
    assert check_appends([call(1, "list", "a\n", 0, 1), call(2, "append", "a", 2, 3)])
    assert check_appends([call(1, "append", "a", 0, 1, "fail"), call(2, "list", "a\n", 2, 3)])


def test_random_lists_and_sums_and_one_spoiled() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(30):
        lists: list[Call] = []
        sums: list[Call] = []
        content, accounts = "", [10, 10, 10]
        for line in range(1, 41):
            lists.append(call(2 * line, "append", f"r{line}", line * 10, line * 10 + 1))
            content += f"r{line}\n"
            lists.append(call(2 * line + 1, "list", content, line * 10 + 2, line * 10 + 3))
            giver, taker = source.sample(range(3), 2)
            accounts[giver] -= 1
            accounts[taker] += 1
            sums.append(call(line, "balances", " ".join(map(str, accounts)), line * 10, line * 10 + 1))
        assert not check_appends(lists) and not check_sums(sums) and not check_registers(lists + sums)
        spoiled = source.randrange(40) * 2 + 1
        value = lists[spoiled].value or ""
        cut = source.randrange(len(value))
        lists[spoiled] = lists[spoiled]._replace(value=value[:cut] + value[cut + 1 :])
        assert check_appends(lists)
        spoiled = source.randrange(40)
        sums[spoiled] = sums[spoiled]._replace(value=f"{sums[spoiled].value} 1")
        assert check_sums(sums)


def test_sums_that_are_no_numbers() -> None:
    assert check_sums([call(1, "balances", "1 x", 0, 1)])


def test_command_finds_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "history"
    events = []
    for time_ns, (operation, value) in enumerate([("list", "a\n"), ("balances", "3"), ("balances", "4")]):
        start = {"event": "invoke", "client": "a", "time_ns": 2 * time_ns, "operation": operation}
        end = {"event": "return", "client": "a", "time_ns": 2 * time_ns + 1, "outcome": "ok"}
        events += [{**start, "key": operation}, {**end, "value": value}]
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "P1 broke at list" in printed and "P1 broke at balances" in printed
