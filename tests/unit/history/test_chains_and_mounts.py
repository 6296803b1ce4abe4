"""The checker of rename chains, and what is promised across mounts, on histories known to be good and bad."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.unit.history.test_registers import call
from tools.cli import main
from tools.history.appends import check_appends
from tools.history.chains import check_chains
from tools.history.check import check
from tools.history.record import Call, HistoryError, parse
from tools.history.registers import check_registers

PLACED = [call(1, "place", "a x", 0, 1), call(2, "rename", "a b", 10, 20)]
GOOD_CHAINS = {
    "before": [*PLACED, call(3, "look", "a x", 2, 3), call(4, "names", "a", 2, 3)],
    "meanwhile, either": [*PLACED, call(3, "look", "a", 11, 12), call(4, "look", "b x", 13, 14)],
    "after": [*PLACED, call(3, "look", "a", 21, 22), call(4, "look", "b x", 21, 22)],
    "back again": [*PLACED, call(3, "rename", "b a", 30, 40), call(4, "look", "a x", 41, 42)],
    "a rename that may never be": [
        *PLACED, call(3, "rename", "b c", 30, None), call(4, "look", "b x", 50, 51),
        call(5, "look", "c x", 60, 61),
    ],
    "refused": [*PLACED, call(3, "rename", "a c", 30, 31, "fail"), call(4, "names", "b", 40, 41)],
    "not there yet": [*PLACED, call(3, "look", "a", 0, 1), call(4, "names", "", 0, 1)],
    "an empty file": [call(1, "place", "a ", 0, 1), call(2, "look", "a ", 2, 3), call(3, "look", "b", 2, 3)],
}  # fmt: skip
BAD_CHAINS = {
    "missing": [*PLACED, call(3, "look", "a", 11, 12), call(4, "look", "b", 13, 14)],
    "no name at all": [*PLACED, call(3, "names", "", 12, 13)],
    "two names": [*PLACED, call(3, "names", "a b", 12, 13)],
    "the old name still": [*PLACED, call(3, "look", "a x", 21, 22)],
    "mixed bytes": [*PLACED, call(3, "look", "b xx", 21, 22)],
    "emptied": [*PLACED, call(3, "look", "b ", 21, 22)],
    "back without a rename": [*PLACED, call(3, "look", "b x", 11, 12), call(4, "look", "a x", 13, 14)],
    "a refused rename that was done": [
        *PLACED, call(3, "rename", "b c", 30, 31, "fail"), call(4, "look", "c x", 40, 41),
    ],
    "renamed twice from one name": [*PLACED, call(3, "rename", "a c", 30, 31)],
    "made twice": [*PLACED, call(3, "place", "a x", 30, 31)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_CHAINS)
def test_good_chain(name: str) -> None:
    assert check(GOOD_CHAINS[name]) == []


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_bad_chain(name: str) -> None:
    (finding,) = check_chains(BAD_CHAINS[name])
    assert finding.promise == "P8" and finding.calls


def test_random_chains_and_one_answer_spoiled() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(30):
        name, calls = "a", [call(1, "place", "a x", 0, 5)]
        for line in range(2, 50):
            start, end = line * 10 - source.randrange(15), line * 10 + source.randrange(15)
            if source.random() < 0.4:
                new = source.choice([other for other in "abcd" if other != name])
                calls.append(call(line, "rename", f"{name} {new}", line * 10 - 4, line * 10 + 4))
                name = new
            else:
                asked = source.choice("abcd")
                seen = f"{asked} x" if asked == name else asked
                calls.append(call(line, "look", seen, start, end)._replace(mount=source.choice("mn")))
        assert check_chains(calls) == []
        looks = [i for i, one in enumerate(calls) if one.operation == "look"]
        at = source.choice(looks)
        value = source.choice(["a y", "e x", "b xx"])
        assert check_chains([*calls[:at], calls[at]._replace(value=value), *calls[at + 1 :]])
        end = call(60, "look", name, 1000, 1001)  # it is not there although nobody took it away
        assert check_chains([*calls, end])


def on(mount: str, *calls: Call) -> list[Call]:
    return [one._replace(mount=mount) for one in calls]


WRITTEN = on("m", call(1, "write", "a", 0, 1), call(2, "write", "b", 10, 20))
GOOD_MOUNTS = {
    "the other mount sees it only when it is closed": [
        *WRITTEN, *on("m", call(3, "read", "b", 11, 12)), *on("n", call(4, "read", "a", 13, 14)),
    ],
    "two orders of what is written at once": [
        *on("m", call(1, "write", "a", 0, 9), call(3, "read", "b", 2, 3), call(4, "read", "a", 4, 5)),
        *on("n", call(2, "write", "b", 0, 9), call(5, "read", "a", 2, 3), call(6, "read", "b", 4, 5)),
    ],
    "closed, then opened": [*WRITTEN, *on("n", call(3, "read", "b", 21, 22))],
}  # fmt: skip
BAD_MOUNTS = {
    "closed, then not seen": [*WRITTEN, *on("n", call(3, "read", "a", 21, 22))],
    "back on one mount": [
        *WRITTEN, *on("n", call(3, "read", "b", 11, 12), call(4, "read", "a", 13, 14)),
    ],
    "never written": [*WRITTEN, *on("n", call(3, "read", "c", 11, 12))],
    "no agreement in the end": [
        *on("m", call(1, "write", "a", 0, 9), call(3, "read", "a", 20, 21)),
        *on("n", call(2, "write", "b", 0, 9), call(4, "read", "b", 20, 21)),
    ],
    "two creators": [*on("m", call(1, "create", "a", 0, 5)), *on("n", call(2, "create", "b", 0, 5))],
    "renamed into place, in two orders": [
        *on("m", call(1, "replace", "a", 0, 1), call(2, "replace", "b", 10, 20)),
        *on("m", call(3, "read", "b", 11, 12)), *on("n", call(4, "read", "a", 13, 14)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_MOUNTS)
def test_good_across_mounts(name: str) -> None:
    assert check_registers(GOOD_MOUNTS[name]) == []


@pytest.mark.parametrize("name", BAD_MOUNTS)
def test_bad_across_mounts(name: str) -> None:
    (finding,) = check_registers(BAD_MOUNTS[name])
    assert finding.promise == "P8" and finding.calls


def test_what_is_good_across_mounts_is_not_within_one() -> None:
    for name in ("the other mount sees it only when it is closed",):
        (finding,) = check_registers(on("m", *GOOD_MOUNTS[name]))
        assert finding.promise == "P1"


def test_random_close_to_open_and_one_stale_reading() -> None:
    """Two mounts; each sees its own writes at once, and the other's at the latest when they are closed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(30):
        calls, state, before = [call(1, "write", "v1", 0, 1)._replace(mount="m")], "v1", "v1"
        for line in range(2, 40):
            start, own = line * 10, source.choice("mn")
            other = "n" if own == "m" else "m"
            if source.random() < 0.4:
                before, state = state, f"v{line}"
                calls += on(own, call(line, "write", state, start, start + 8))
                calls += on(own, call(100 + line, "read", state, start + 1, start + 2))
                calls += on(other, call(200 + line, "read", before, start + 3, start + 4))
            else:
                calls += on(own, call(line, "read", state, start, start + 8))
        assert check_registers(calls) == []
        after = on("n", call(400, "read", before, 1000, 1001))
        assert before == state or check_registers([*calls, *after])


TWO_APPENDERS = [
    *on("m", call(1, "append", "a", 0, 1), call(2, "append", "b", 10, 20)),
    *on("n", call(3, "append", "c", 10, 20)),
]


def test_lists_across_mounts() -> None:
    unsettled = on("m", call(4, "list", "a\nb\n", 12, 13))
    settled = on("n", call(5, "list", "a\nc\nb\n", 21, 22))
    assert check_appends([*TWO_APPENDERS, *unsettled, *settled]) == []
    assert check_appends(on("m", *TWO_APPENDERS, *unsettled, *settled))
    later = on("m", call(6, "list", "a\nb\nc\n", 23, 24))
    (finding,) = check_appends([*TWO_APPENDERS, *unsettled, *settled, *later])
    assert finding.promise == "P8" and [one.line for one in finding.calls] == [5, 6]


def test_an_unsettled_record_may_be_seen_twice_on_its_own_mount() -> None:
    twice = call(4, "list", "a\nb\nb\n", 12, 13)
    assert check_appends([*TWO_APPENDERS, *on("m", twice)]) == []
    assert check_appends([*TWO_APPENDERS, *on("n", twice)])
    assert check_appends([*TWO_APPENDERS[:2], *on("m", twice), *on("n", call(5, "list", "", 0, 0))])


@pytest.mark.parametrize("value", ["a\nc\n", "a\nb\nb\nc\n", "a\nb\ncb\n", "a\nb\nc", "a\nb\nc\nd\n"])
def test_bad_lists_across_mounts(value: str) -> None:
    assert check_appends([*TWO_APPENDERS, *on("n", call(5, "list", value, 21, 22))])


def test_command_tells_mounts_apart(tmp_path: Path) -> None:
    file = tmp_path / "history"
    events = []
    for one in sorted(GOOD_MOUNTS["the other mount sees it only when it is closed"], key=lambda c: c.line):
        about = {"client": one.client, "mount": one.mount}
        start = {"event": "invoke", "time_ns": one.start_ns, "operation": one.operation, "key": one.key}
        end = {"event": "return", "time_ns": one.end_ns, "outcome": "ok", "value": one.value}
        events += [{**about, **start, "value": one.value}, {**about, **end}]
    file.write_text("\n".join(map(json.dumps, events)))
    assert main(["check-history", str(file)]) == 0
    file.write_text("\n".join(json.dumps({**event, "mount": "m"}) for event in events))
    assert main(["check-history", str(file)]) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "invoke", "client": "a", "time_ns": 1, "operation": "rename", "key": "k", "value": "a"}',
        '{"event": "vote", "time_ns": -1}',
        '{"event": "message", "time_ns": 2, "end_ns": 1}',
        '{"event": "fault", "time_ns": 1, "text": 5}',
    ],
)
def test_lines_that_are_no_events(line: str) -> None:
    with pytest.raises(HistoryError, match="line 1"):
        parse([line])
