"""What `explain` prints for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.explain import ROWS, select, show

CHANGE = "restart the mediators"
ALL_NOW = "all of them now by"
HINTS = (
    ALL_NOW,
    "seconds after a read has asked them to vote.",
    "Qr = 1",
    "No good replica",
    "others are down",
)


def report(count: int, bad: int | None = None) -> dict[str, Any]:
    blocks = [
        {
            "block": f"{index:032x}",
            "digest": "00" * 32,
            "length": 1 << 20,
            "offset": index << 20,
            "outcome": "readable",
            "verdicts": {"1": "good", "2": "corrupt" if index == bad else "good"},
        }
        for index in range(count)
    ]
    return {
        "ino": 7,
        "paths": ["/[a].txt"],
        "size": count << 20,
        "quorum": {"N": 2, "Qr": 1, "Qw": 2},
        "last_refusal": None,
        "writable": True,
        "reason": "",
        "blocks": blocks,
    }


def test_a_bad_block_is_listed_wherever_it_is() -> None:
    blocks = report(1000, bad=700)["blocks"]
    assert [block["offset"] >> 20 for block in select(blocks, False)] == [*range(ROWS), 700]
    assert select(blocks, True) == blocks


def test_verdicts_and_refusal_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    told = report(2, bad=1)
    told["last_refusal"] = {
        "when_ns": 0,
        "operation": "read",
        "message": "1 of [Qr]=2",
        "detail": {"votes": {}},
    }
    show(Path("[a].txt"), told, CHANGE, everything=False)
    said = capsys.readouterr().out
    for word in ("[a].txt", "inode 7", "/[a].txt", "N=2", "corrupt", "1.0 MiB", "read: 1 of [Qr]=2", "votes"):
        assert word in said


@pytest.mark.parametrize(
    ("verdicts", "read_quorum", "hint"),
    [
        ("good good good", 2, ""),
        ("good good down", 2, ""),
        ("good good corrupt", 2, ALL_NOW),
        ("missing good good", 2, ALL_NOW),
        ("good corrupt corrupt", 2, "Qr = 1"),
        ("down corrupt corrupt", 2, "Qr = 1"),
        ("good corrupt good down", 2, "seconds after a read has asked them to vote."),
        ("good corrupt down", 2, "others are down"),
        ("good missing down", 2, "seconds after a read has asked them to vote."),
        ("missing missing down", 2, "others are down"),
        ("good down down", 2, "others are down"),
        ("good good corrupt", 3, "Qr = 1"),
        ("corrupt corrupt corrupt", 1, "No good replica"),
        ("corrupt missing corrupt", 2, "No good replica"),
    ],
)
def test_how_replicas_become_good(
    verdicts: str, read_quorum: int, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(1)
    given = verdicts.split()
    told["quorum"] = {"N": len(given), "Qr": read_quorum, "Qw": len(given)}
    told["blocks"][0]["verdicts"] = {str(n): word for n, word in enumerate(given, 1)}
    show(Path("a"), told, CHANGE, Path("s"), everything=False)
    said = capsys.readouterr().out.replace("\n", " ")
    assert [each for each in HINTS if each in said] == ([hint] if hint else [])
    assert ("scrub --now --state s" in said) == (hint == ALL_NOW)
    assert (CHANGE in said) == (hint == "Qr = 1")


def test_why_nothing_can_be_written_now(capsys: pytest.CaptureFixture[str]) -> None:
    told = report(1) | {"writable": False, "reason": "1 of 2 data servers is up"}
    show(Path("a"), told, CHANGE, everything=False)
    assert "Writes are refused now: 1 of 2 data servers is up" in capsys.readouterr().out


def test_a_file_without_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    show(Path("empty"), report(0), CHANGE, everything=False)
    assert "no blocks" in capsys.readouterr().out
