"""The checker of registers on histories known to be good and bad."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tools.cli import main
from tools.history.record import NEVER_NS, Call, HistoryError, parse
from tools.history.registers import check_registers


def call(
    line: int, operation: str, value: str | None, start: int, end: int | None, outcome: str = "ok"
) -> Call:
    end_ns = NEVER_NS if end is None else end
    return Call(line, f"c{line}", operation, "k", value, "unknown" if end is None else outcome, start, end_ns)


GOOD = {
    "one after the other": [call(1, "write", "a", 0, 1), call(2, "read", "a", 2, 3)],
    "either of two at once": [
        call(1, "write", "a", 0, 9), call(2, "write", "b", 0, 9), call(3, "read", "a", 10, 11),
    ],
    "late effect of a time-out": [
        call(1, "write", "a", 0, None), call(2, "read", None, 1, 2), call(3, "read", "a", 3, 4),
    ],
    "a time-out that never was": [call(1, "write", "a", 0, None), call(2, "read", None, 5, 6)],
    "one creator": [call(1, "create", "a", 0, 5), call(2, "create", "b", 0, 5, "fail")],
}  # fmt: skip
BAD = {
    "stale": [call(1, "write", "a", 0, 1), call(2, "write", "b", 2, 3), call(3, "read", "a", 4, 5)],
    "never written": [call(1, "read", "a", 0, 1)],
    "back again": [
        call(1, "write", "a", 0, 1), call(2, "write", "b", 2, 9), call(3, "read", "b", 3, 4),
        call(4, "read", "a", 5, 6),
    ],
    "two creators": [call(1, "create", "a", 0, 5), call(2, "create", "b", 0, 5)],
    "a failed write seen": [call(1, "write", "a", 0, 1, "fail"), call(2, "read", "a", 2, 3)],
    "before it was called": [call(1, "read", "a", 0, 1), call(2, "write", "a", 2, 3)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert check_registers(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    (finding,) = check_registers(BAD[name])
    assert finding.promise == "P1" and finding.calls


def test_random_histories_and_a_swapped_value() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(30):
        calls, state = [], None
        for line in range(1, 41):
            write = source.random() < 0.4
            state = f"v{line}" if write else state
            point, before, after = line * 10, source.randrange(25), source.randrange(25)
            operation = "write" if write else "read"
            calls.append(call(line, operation, state, point - before, point + after))
        assert check_registers(calls) == []
        reads = [i for i, one in enumerate(calls) if one.operation == "read"]
        broken = source.choice(reads)
        calls[broken] = calls[broken]._replace(value="never written")
        assert check_registers(calls)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        {"event": "invoke", "client": "a", "time_ns": 1, "operation": "write", "key": "k", "value": "x"},
        {"event": "return", "client": "a", "time_ns": 2, "outcome": "ok"},
        {"event": "invoke", "client": "b", "time_ns": 3, "operation": "read", "key": "k"},
        {"event": "return", "client": "b", "time_ns": 4, "outcome": "ok", "value": "x"},
    ]
    file = tmp_path / "history"
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file)]) == 0
    events[3]["value"] = "y"
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file)]) == 1
    assert "P1 broke at k" in capsys.readouterr().out
    file.write_text("[]")
    assert main(["check-history", str(file)]) == 2
    assert main(["check-history", str(tmp_path / "none")]) == 2
    assert f"{tmp_path}/none: No such file or directory; name another file" in capsys.readouterr().err


def test_a_return_without_a_call_is_refused() -> None:
    with pytest.raises(HistoryError, match="line 1"):
        parse(['{"event": "return", "client": "a", "time_ns": 1, "outcome": "ok"}'])
